"""`fedlora server start | status | stop`, and `fedlora sites invite | list | revoke`. Heavy imports stay inside."""

import json
import logging
import os
import shlex
import sys
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.log_options import FileOption, FormatOption, LogFormat
from fedlora.cli.metrics_option import MetricsOption
from fedlora.cli.trace_option import TraceOption
from fedlora.cli.track_option import TrackOption
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from fedlora.server.deployment import Door
    from fedlora.server.disk.audit import Entry
    from fedlora.server.identity.authority import Authority
    from fedlora.server.record.events import Listener

logger = logging.getLogger(__name__)

_STOPPED = 0
_DEFAULT_PORT = 8470

server_app = typer.Typer(help="Run an aggregation server, look at it, stop it.", no_args_is_help=True)
sites_app = typer.Typer(help="Who may take part: invite sites, list them, revoke them.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The run's folder.")]
Identity = Annotated[
    Path | None,
    typer.Option(
        "--identity", metavar="DIR", help="Authority and sites' records. Default: identity/ in the run's folder."
    ),
]


@server_app.command()
def start(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file.")],
    out: Out,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the run file; may be repeated."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where sites connect; [::] is every address, IPv4 too.")
    ] = f"[::]:{_DEFAULT_PORT}",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without certificates, on loopback alone.")
    ] = False,
    identity: Identity = None,
    ca: Annotated[Path | None, typer.Option(metavar="PEM", help="The authority of a PKI of your own ...")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="... the server's certificate from it ...")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="... and its key.")] = None,
    log_format: FormatOption = LogFormat.TEXT,
    log_file: FileOption = None,
    metrics: MetricsOption = None,
    track: TrackOption = None,
    trace: TraceOption = None,
) -> None:
    """Run the rounds of RUN.toml over the sites that join. The same command goes on with a run that was cut off.

    With --set federation.rounds=20 it prolongs one that is over.
    """
    # What strangers try on the port is no news to the operator, and that a port is taken is an error of ours. Read when
    # grpc is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from rich.console import Console

    from fedlora.cli.live import has_live_view
    from fedlora.cli.logs import Log, logging_to

    console = Console()
    is_live = log_format is LogFormat.TEXT and has_live_view(console)
    with logging_to(Log(log_format, log_file, console if is_live else None)), terminated_as_interrupted():
        door = _door(listen, insecure, identity, (ca, cert, key))
        try:
            _start(
                run,
                out,
                tuple(overrides or ()),
                door,
                console=console,
                is_live=is_live,
                metrics=metrics,
                track=tuple(track or ()),
                trace=trace,
            )
        except KeyboardInterrupt as interrupt:
            logger.info("interrupted; the same command goes on")
            raise typer.Exit(exit_status(interrupt)) from None


@server_app.command()
def status(
    out: Out, as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, and nothing else.")] = False
) -> None:
    """Say how a server is doing, or how it ended: round, sites by state, updates, bytes, scores."""
    from fedlora.cli.server_view import status_lines
    from fedlora.server.disk.status_file import read_status

    found = read_status(out)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for line in status_lines(found):
        print(printable(line))


@server_app.command()
def stop(out: Out) -> None:
    """End a server in good order; what was accepted is on disk, and the same start command goes on."""
    from fedlora.server.disk.stop_request import stop_server

    stop_server(out)
    print("stopped")


@server_app.command()
def audit(
    out: Out, as_json: Annotated[bool, typer.Option("--json", help="Print the entries that hold, a line each.")] = False
) -> None:
    """Check the audit log of a run: who came, what counted and what was refused, each entry against the one before."""
    from fedlora.cli.server_view import audit_lines
    from fedlora.common.run_folder import AUDIT_FILE
    from fedlora.server.disk.audit import read_audit

    found = read_audit(out)
    for entry in found.entries if as_json else ():
        print(json.dumps(entry))
    for line in audit_lines(found):
        print(line, file=sys.stderr if as_json else sys.stdout)
    if found.fault:
        raise StoreError(f"{out / AUDIT_FILE}: {found.fault}; compare with a copy of it")


@sites_app.command()
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    out: Out,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--run", metavar="NAME", help="A run it may take part in; may be repeated. Default: the folder's."
        ),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, help="How long the token is good.")] = 24.0,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="How the site reaches the server, for the line to type. Default: where it listens, as far as known.",
        ),
    ] = None,
    identity: Identity = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="With a PKI of your own: its authority. No token is needed then.")
    ] = None,
) -> None:
    """Let a site take part: print a token for it, good once, and the line to type there.

    A site that has enrolled keeps the runs that it may take part in; this adds to them.
    """
    from fedlora.common.addresses import split_address

    if address is not None:
        split_address(address)
    names = tuple(runs or (_run_of(out),))
    authority = _authority(out, identity, ca)
    join = f"fedlora client join {address or _reached_at(out)} --site SITE.toml"
    if authority.is_external:
        authority.allow(name, names)
        _note(out, {"event": "allowed", "site": name, "runs": list(names)})
        print(f"{name} may take part in {', '.join(names)} with its certificate; at the site:\n")
        print(f"  {join} --ca CA.pem --cert CERT.pem --key KEY.pem")
        return
    token = authority.invite(name, names, timedelta(hours=hours), datetime.now(UTC))
    _note(out, {"event": "invited", "site": name, "runs": list(names), "hours": hours})
    print(f"{name} is invited to {', '.join(names)}. The token is good once, for {hours:g} hours:\n")
    print(f"  {token}\n")
    print("At the site, where this asks for it; --token-file FILE and FEDLORA_TOKEN are ways without a question:\n")
    print(f"  {join} --token -")


@sites_app.command("list")
def list_sites(out: Out, identity: Identity = None) -> None:
    """List the sites: who is invited, enrolled or revoked, and until when."""
    from rich.console import Console

    from fedlora.cli.server_view import sites_table

    records = _authority(out, identity, None).sites()
    if not records:
        print(f"no site yet; invite one with: fedlora sites invite NAME --out {shlex.quote(str(out))}")
        return
    Console().print(sites_table(records, datetime.now(UTC)))


@sites_app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")], out: Out, identity: Identity = None
) -> None:
    """End a site's certificates and its invitation, at once and for good; it can be invited anew."""
    _authority(out, identity, None).revoke(name)
    _note(out, {"event": "revoked", "site": name})
    print(f"{name} is revoked")


def _start(
    run: Path,
    out: Path,
    overrides: tuple[str, ...],
    door: "Door",
    *,
    console: "Console",
    is_live: bool,
    metrics: str | None,
    track: tuple[str, ...],
    trace: Path | None,
) -> None:
    from fedlora.cli.live import logged_events, metric_name_in, print_outcome, progress_view
    from fedlora.cli.server_watching import metrics_of, traces_of
    from fedlora.common.config import Occasion, idle_settings
    from fedlora.common.run_file import load_run
    from fedlora.server.disk.account import seconds_worked
    from fedlora.server.disk.recorded_rounds import recorded_rounds
    from fedlora.server.disk.status_file import StatusFile
    from fedlora.server.record.running_summary import Summarised, after_rounds
    from fedlora.server.whole_run import Rounds, Run, whole_run
    from fedlora.trackers import load_trackers

    config = load_run(run, overrides)
    known = after_rounds(recorded_rounds(out))
    status_file = StatusFile(out, config, known=known, identity=None if door.is_insecure else door.identity_folder(out))
    is_open = Event()
    watching, shown_by_metrics = metrics_of(metrics, config, door, out, known=known, is_open=is_open)

    @contextmanager
    def shown() -> "Iterator[Listener]":
        title, metric_name = config.run.name, partial(metric_name_in, out)
        view = progress_view(title=title, metric_name=metric_name, console=console) if is_live else nullcontext()
        with view as picture, status_file:
            logged = logged_events(title=title, metric_name=metric_name)
            pictures = [status_file.show, logged, *shown_by_metrics, *([picture] if picture is not None else [])]
            pictures += [] if traces is None else [traces.show]
            yield Summarised(pictures, known=known)

    def opened(port: int) -> None:
        address = f"{door.address.rpartition(':')[0]}:{port}"
        is_open.set()
        status_file.listening(port, address=address)
        logger.info("listening on %s", address)
        if not door.is_insecure:
            logger.info("to let a site in: fedlora sites invite NAME --out %s", shlex.quote(str(out)))

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
    the_run = Run(config, out, config.federation.sites, command, notes, trackers=load_trackers(track))
    with watching, traces_of(trace, config) as traces:
        reached = whole_run(the_run, served, shown=shown())
    from fedlora.server.disk.audit import AuditLog
    from fedlora.server.run_report import load_code

    print_outcome(
        console,
        reports=() if reached is None else reached.reports,
        metric_name=metric_name_in(out),
        out_dir=out,
        load_code=load_code(out, config),
        worked=seconds_worked(out),
    )
    head = AuditLog(out).head()
    said = f"audit log     {head.num_lines:,} lines, the last with the sha256 {head.sha256}"
    console.print(said, highlight=False, soft_wrap=True)


def _door(
    listen: str, insecure: bool, identity: Path | None, typed: tuple[Path | None, Path | None, Path | None]
) -> "Door":
    from fedlora.cli.pem_options import pem_files
    from fedlora.server.deployment import Door
    from fedlora.server.sites.grpc.port import ExternalPair

    if insecure and (any(typed) or identity):
        raise ConfigError("--insecure needs no certificates; leave out --identity, --ca, --cert and --key")
    files = pem_files(*typed)
    if files is None:
        return Door(listen, insecure, identity)
    return Door(listen, False, identity, files.ca, ExternalPair(files.certificate, files.key))


def _authority(out: Path, identity: Path | None, ca: Path | None) -> "Authority":
    from fedlora.server.identity.authority import Authority

    folder = identity or _identity_of(out)
    if ca is not None:
        try:
            return Authority.external(folder, ca.read_bytes())
        except OSError as error:
            raise ConfigError(f"{ca}: cannot be read ({error.strerror}); expected a file in PEM") from error
    return Authority.kept(folder, datetime.now(UTC))


def _identity_of(out: Path) -> Path:
    """Return where the authority of a run folder's server lies, which may be elsewhere than in that folder."""
    from fedlora.common.run_folder import IDENTITY_FOLDER

    recorded = _status_of(out).get("identity")
    return Path(str(recorded)) if recorded else out / IDENTITY_FOLDER


def _reached_at(out: Path) -> str:
    """Return the address of a run folder's server as far as it is known, with HOST for one that listens everywhere."""
    host, _, port = str(_status_of(out).get("address") or "").rpartition(":")
    return f"{'HOST' if host in ('', '[::]', '0.0.0.0') else host}:{port or _DEFAULT_PORT}"


def _status_of(out: Path) -> dict[str, object]:
    from fedlora.server.disk.status_reading import checked_status

    try:
        return checked_status(out)
    except StoreError:
        return {}  # Before the first start, or damaged: what is usual holds.


def _note(out: Path, entry: "Entry") -> None:
    """Write an entry to the run's audit log."""
    from fedlora.server.disk.audit import AuditLog

    if out.is_dir():
        AuditLog(out).append(entry)


def _run_of(out: Path) -> str:
    from fedlora.common.run_file import load_run
    from fedlora.common.run_folder import RUN_FILE

    if not (out / RUN_FILE).is_file():
        raise StoreError(f"{out} holds no run; start the server first, or name the run with --run")
    return load_run(out / RUN_FILE, aggregates_elsewhere=True).run.name
