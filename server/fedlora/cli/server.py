"""`fedlora server start | status | stop | audit`. Heavy imports stay inside."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.json_output import Json, print_json
from fedlora.cli.log_options import FileOption, FormatOption, LogFormat
from fedlora.cli.metrics_option import MetricsOption
from fedlora.cli.outputs import Said
from fedlora.cli.server_folder import authority_in, note_in, require_known_version
from fedlora.cli.server_options import DEFAULT_PORT, Identity, Out
from fedlora.cli.trace_option import TraceOption
from fedlora.cli.track_option import TrackOption
from fedlora.common.errors import StoreError
from fedlora.common.printable import printable

logger = logging.getLogger(__name__)

server_app = typer.Typer(help="Run an aggregation server, look at it, stop it.", no_args_is_help=True)


@server_app.command()
def start(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN.toml]", help="The run file; none with --store.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="In place of a run: a folder of many, done one after another (fedlora runs submit)."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the run file; may be repeated."),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where sites connect; [::] is every address, IPv4 too.")
    ] = f"[::]:{DEFAULT_PORT}",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without certificates, on loopback alone.")
    ] = False,
    identity: Identity = None,
    ca: Annotated[Path | None, typer.Option(metavar="PEM", help="The authority of a PKI of your own ...")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="... the server's certificate from it ...")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="... and its key.")] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Show the run as a page there, 127.0.0.1:8471 say; without a sign-in."),
    ] = None,
    log_format: FormatOption = LogFormat.TEXT,
    log_file: FileOption = None,
    metrics: MetricsOption = None,
    track: TrackOption = None,
    trace: TraceOption = None,
    as_json: Json = False,
) -> None:
    """Run the rounds of RUN.toml over the sites that join. The same command goes on with a run that was cut off.

    With --set federation.rounds=20 it prolongs one that is over. With --store DIR it does the runs that are submitted
    to the store, until it is stopped.
    """
    if (run is None or out is None) if store is None else (run is not None or out is not None or bool(overrides)):
        raise typer.BadParameter("expected RUN.toml with --out DIR, or --store DIR without a run")
    # What strangers try on the port is no news to the operator, and that a port is taken is an error of ours. Read when
    # grpc is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from rich.console import Console

    from fedlora.cli.live import has_live_view
    from fedlora.cli.logs import Log, logging_to
    from fedlora.cli.serving import Shown, Watched, dashboard_at, door_of, serve_run, serve_runs

    # What is told on the way is not for who reads the outcome.
    console = Console(stderr=as_json)
    is_live = store is None and log_format is LogFormat.TEXT and has_live_view(console)
    with (
        logging_to(Log(log_format, log_file, console if is_live else None)),
        terminated_as_interrupted(),
        dashboard_at(dashboard, store or out),
    ):
        door = door_of(listen, insecure, identity, (ca, cert, key))
        try:
            watched = Watched(metrics, tuple(track or ()), trace)
            if store is not None:
                serve_runs(store, door, watched)
                if as_json:
                    print_json(Said("stopped", str(store)))
            elif run is not None and out is not None:
                serve_run(run, out, tuple(overrides or ()), door, watched, Shown(console, is_live, as_json))
        except KeyboardInterrupt as interrupt:
            logger.info("interrupted; the same command goes on")
            raise typer.Exit(exit_status(interrupt)) from None


@server_app.command()
def status(out: Out, as_json: Json = False) -> None:
    """Say how a server is doing, or how it ended: round, sites, updates, bytes, scores; of a store, its runs."""
    from fedlora.cli.runs import print_runs, to_go_on_with
    from fedlora.cli.server_view import status_lines
    from fedlora.server.disk.status_file import read_status
    from fedlora.server.run_queue.store import RunStore, is_in_store, is_store

    if is_store(out):
        print_runs(out, as_json=as_json)
        return
    found = read_status(out)
    if as_json:
        print_json(found)
        return
    folder = out.absolute()
    of_a_store = {}
    if is_in_store(folder):
        of_a_store["to_go_on"] = to_go_on_with(str(found["run"]), RunStore.existing(folder.parent.parent))
    for line in status_lines(found, **of_a_store):
        print(printable(line))


@server_app.command()
def stop(out: Out, as_json: Json = False) -> None:
    """End a server in good order; what was accepted is on disk, and the same start command goes on."""
    from fedlora.server.disk.stop_request import stop_server

    stop_server(out)
    if as_json:
        print_json(Said("stopped", str(out)))
    else:
        print("stopped")


@server_app.command()
def renew(out: Out, identity: Identity = None, as_json: Json = False) -> None:
    """Renew the authority of a server now; it does so by itself once less than a third of its ten years is left.

    Its key stays: enrolled sites go on, tokens stay good, and a server that runs need not be started again.
    """
    end = authority_in(out, identity, None).renew_authority(datetime.now(UTC))
    note_in(out, {"event": "authority renewed", "until": f"{end:%Y-%m-%d}"})
    if as_json:
        print_json(Said(f"renewed until {end:%Y-%m-%d}", str(out)))
        return
    print(f"the authority is good until {end:%Y-%m-%d}; each site gets this with its own next certificate")


@server_app.command()
def audit(
    out: Out, as_json: Annotated[bool, typer.Option("--json", help="Print the entries that hold, a line each.")] = False
) -> None:
    """Check the audit log of a run: who came, what counted and what was refused, each entry against the one before."""
    from fedlora.cli.server_view import audit_lines
    from fedlora.common.run_folder import AUDIT_FILE
    from fedlora.server.disk.audit import read_audit

    require_known_version(out)
    found = read_audit(out)
    for entry in found.entries if as_json else ():
        print(json.dumps(entry))
    for line in audit_lines(found):
        print(line, file=sys.stderr if as_json else sys.stdout)
    if found.fault:
        raise StoreError(f"{out / AUDIT_FILE}: {found.fault}; compare with a copy of it")
