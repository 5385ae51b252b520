"""What `fedlora server start` does: one run's rounds, or the runs of a store. Heavy imports stay inside."""

import logging
import shlex
import sys
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import typer

from fedlora.common.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from fedlora.common.config import RunConfig
    from fedlora.server.disk.status_file import StatusFile
    from fedlora.server.door import Door
    from fedlora.server.record.events import Listener
    from fedlora.server.record.running_summary import RunningSummary
    from fedlora.server.run_metrics import RunMetrics
    from fedlora.server.run_traces import RunTraces

logger = logging.getLogger(__name__)

_STOPPED = 0
# What the server is called in traces.
_PROCESS = "fedlora-server"


@dataclass(frozen=True)
class Watched:
    """How others watch a run: where its metrics are, its trackers by name, and the file of its traces."""

    metrics: str | None
    track: tuple[str, ...]
    trace: Path | None


@dataclass(frozen=True)
class Shown:
    """How its own terminal shows a run: where, whether in a live view, and whether its outcome is JSON."""

    console: "Console"
    is_live: bool
    as_json: bool


def serve_run(run: Path, out: Path, overrides: tuple[str, ...], door: "Door", watched: Watched, shown: Shown) -> None:
    """Do the rounds of one run that are left, and print what they have led to.

    Raises:
        FedloraError: the run, the folder or the port cannot be used.
        typer.Exit: it was stopped.
    """
    from fedlora.cli.json_output import print_json
    from fedlora.cli.live import metric_name_in, print_outcome
    from fedlora.cli.outcome import outcome_of
    from fedlora.cli.server_watching import metrics_of
    from fedlora.cli.trace_option import tracer_for, traces_of
    from fedlora.common.config import Occasion, idle_settings
    from fedlora.common.run_file import load_run
    from fedlora.server.disk.account import seconds_worked
    from fedlora.server.disk.recorded_rounds import recorded_rounds
    from fedlora.server.record.running_summary import after_rounds
    from fedlora.server.whole_run import Rounds, Run, whole_run
    from fedlora.trackers import load_trackers

    config, console = load_run(run, overrides), shown.console
    recorded = tuple(recorded_rounds(out))
    known = after_rounds(recorded)
    status_file, is_open = _status_file(config, out, door, known=known), Event()
    watching, metrics = metrics_of(watched.metrics, config, door, out, reports=recorded, is_open=is_open)

    def opened(port: int) -> None:
        is_open.set()
        status_file.listening(port, address=_address(door, port))
        _say_where(door, port, out)

    def served(rounds: Rounds) -> None:
        logger.info("%s: loading", config.run.name)
        from fedlora.finished.resident_check import ResidentCheck
        from fedlora.server.deployment import serve
        from fedlora.server.sites.grpc.grid import RunStopped

        try:
            with ResidentCheck() as check:
                serve(rounds, door, check=check, opened=opened, traces=traces)
        except RunStopped as error:
            logger.info("stopped: %s", error)
            raise typer.Exit(_STOPPED) from None

    notes = idle_settings(config, Occasion("server"))
    command = shlex.join(sys.argv)
    the_run = Run(config, out, config.federation.sites, command, notes, trackers=load_trackers(watched.track))
    try:
        with watching, tracer_for(_PROCESS, watched.trace) as tracer:
            traces = traces_of(tracer, config)
            view = console if shown.is_live else None
            all_shown = _shown(config, out, status_file, known=known, console=view, traces=traces, metrics=metrics)
            reached = whole_run(the_run, served, shown=all_shown)
    except typer.Exit:
        if shown.as_json:
            print_json(outcome_of(config.run.name, out, tuple(recorded_rounds(out)), metric_name_in(out)))
        raise
    reports = () if reached is None else reached.reports
    if shown.as_json:
        print_json(outcome_of(config.run.name, out, reports, metric_name_in(out)))
        return
    from fedlora.server.disk.audit import AuditLog
    from fedlora.server.run_report import load_code

    print_outcome(
        console,
        reports=reports,
        metric_name=metric_name_in(out),
        out_dir=out,
        load_code=load_code(out, config),
        worked=seconds_worked(out),
    )
    head = AuditLog(out).head()
    said = f"audit log     {head.num_lines:,} lines, the last with the sha256 {head.sha256}"
    console.print(said, highlight=False, soft_wrap=True)


def serve_runs(folder: Path, door: "Door", watched: Watched) -> None:
    """Do the runs of a store as they come, until it is stopped.

    Raises:
        FedloraError: the store or the port cannot be used, or the traces cannot be written.
    """
    logger.info("loading")
    from fedlora.cli.server_watching import metrics_of_store
    from fedlora.cli.trace_option import tracer_for, traces_of
    from fedlora.finished.resident_check import ResidentCheck
    from fedlora.server.disk.recorded_rounds import recorded_rounds
    from fedlora.server.record.events import ignore
    from fedlora.server.record.running_summary import after_rounds
    from fedlora.server.run_queue.serving import ShownRun, serve_store
    from fedlora.server.run_queue.store import RunStore
    from fedlora.trackers import load_trackers

    store, is_open = RunStore.opened(folder), Event()
    identity = None if door.is_insecure else door.identity_folder(folder)
    watching, metrics = metrics_of_store(watched.metrics, store, door, is_open=is_open)

    def shown(config: "RunConfig", out: Path, port: int) -> ShownRun:
        recorded = tuple(recorded_rounds(out))
        known = after_rounds(recorded)
        status_file = _status_file(config, out, replace(door, identity=identity), known=known)
        status_file.listening(port, address=_address(door, port))
        of_run = None if metrics is None else metrics.begin(config, out, reports=recorded)
        traces = traces_of(tracer, config)
        return ShownRun(_shown(config, out, status_file, known=known, traces=traces, metrics=of_run), traces)

    def opened(port: int) -> None:
        is_open.set()
        store.write_server(address=_address(door, port), identity=identity)
        _say_where(door, port, folder)

    command, trackers = shlex.join(sys.argv), load_trackers(watched.track)
    heard = ignore if metrics is None else metrics.heard
    with watching, tracer_for(_PROCESS, watched.trace) as tracer, ResidentCheck() as check:
        serve_store(
            store, door, check=check, shown=shown, command=command, opened=opened, trackers=trackers, heard=heard
        )


@contextmanager
def dashboard_at(address: str | None, folder: Path | None) -> "Iterator[None]":
    """Show what a server does in a folder as a page at an address, where one is given, while the block lasts.

    Raises:
        ConfigError: the address cannot be had.
    """
    if address is None or folder is None:
        yield
        return
    from fedlora.dashboard.serving import dashboard_beside

    with dashboard_beside(folder, address) as dashboard:
        logger.info("the run as a page: %s", dashboard.url)
        for note in dashboard.notes:
            logger.warning("%s", note)
        yield


@contextmanager
def _shown(
    config: "RunConfig",
    out: Path,
    status_file: "StatusFile",
    *,
    known: "RunningSummary",
    console: "Console | None" = None,
    traces: "RunTraces | None",
    metrics: "RunMetrics | None" = None,
) -> "Iterator[Listener]":
    """Give a listener that tells log and status file what happens in a run, a live view on `console`, and others.

    What is still at work in the traces ends with the block, and metrics and status file hear that the run does.
    """
    from fedlora.cli.live import logged_events, metric_name_in, progress_view
    from fedlora.server.record.running_summary import Summarised

    title, metric_name = config.run.name, partial(metric_name_in, out)
    view = nullcontext() if console is None else progress_view(title=title, metric_name=metric_name, console=console)
    traced = nullcontext() if traces is None else closing(traces)
    measured = nullcontext() if metrics is None else closing(metrics)
    with view as picture, status_file, traced, measured:
        logged = logged_events(title=title, metric_name=metric_name)
        pictures = [status_file.show, logged, *([picture] if picture is not None else [])]
        pictures += [watching.show for watching in (metrics, traces) if watching is not None]
        yield Summarised(pictures, known=known)


def _status_file(config: "RunConfig", out: Path, door: "Door", *, known: "RunningSummary") -> "StatusFile":
    from fedlora.server.disk.status_file import StatusFile

    identity = None if door.is_insecure else door.identity_folder(out)
    return StatusFile(out, config, known=known, identity=identity)


def _address(door: "Door", port: int) -> str:
    return f"{door.address.rpartition(':')[0]}:{port}"


def _say_where(door: "Door", port: int, folder: Path) -> None:
    logger.info("listening on %s", _address(door, port))
    if not door.is_insecure:
        logger.info("to let a site in: fedlora sites invite NAME --out %s", shlex.quote(str(folder)))


def door_of(
    listen: str, insecure: bool, identity: Path | None, typed: tuple[Path | None, Path | None, Path | None]
) -> "Door":
    """Return the door that was typed: address, certificates, authority.

    Raises:
        ConfigError: options contradict each other, or files are missing.
    """
    from fedlora.cli.pem_options import pem_files
    from fedlora.server.door import Door
    from fedlora.server.sites.grpc.port import ExternalPair

    if insecure and (any(typed) or identity):
        raise ConfigError("--insecure needs no certificates; leave out --identity, --ca, --cert and --key")
    files = pem_files(*typed)
    if files is None:
        return Door(listen, insecure, identity)
    return Door(listen, False, identity, files.ca, ExternalPair(files.certificate, files.key))
