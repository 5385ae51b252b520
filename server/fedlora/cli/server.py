"""`fedlora server start | status | stop`, and `fedlora sites invite | list | revoke`. Heavy imports stay inside."""

import json
import os
import shlex
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.common.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedlora.server.deployment import Door
    from fedlora.server.identity.authority import Authority
    from fedlora.server.record.events import Listener

_STOPPED = 0

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
    ] = "[::]:8470",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without certificates, on loopback alone.")
    ] = False,
    identity: Identity = None,
    ca: Annotated[Path | None, typer.Option(metavar="PEM", help="The authority of a PKI of your own ...")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="... the server's certificate from it ...")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="... and its key.")] = None,
) -> None:
    """Run the rounds of RUN.toml over the sites that join. The same command goes on with a run that was cut off.

    With --set federation.rounds=20 it prolongs one that is over.
    """
    # What strangers try on the port is no news to the operator, and that a port is taken is an error of ours. Read when
    # grpc is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _start(run, out, tuple(overrides or ()), _door(listen, insecure, identity, (ca, cert, key)))


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
        print(line)


@server_app.command()
def stop(out: Out) -> None:
    """End a server in good order; what was accepted is on disk, and the same start command goes on."""
    from fedlora.server.disk.status_file import stop_server

    stop_server(out)
    print("stopped")


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
        str, typer.Option(metavar="HOST:PORT", help="How the site reaches the server, for the line to type.")
    ] = "HOST:8470",
    identity: Identity = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="With a PKI of your own: its authority. No token is needed then.")
    ] = None,
) -> None:
    """Let a site take part: print a token for it, good once, and the line to type there."""
    names = tuple(runs or (_run_of(out),))
    authority = _authority(out, identity, ca)
    if authority.is_external:
        authority.allow(name, names)
        print(f"{name} may take part in {', '.join(names)} with its certificate; at the site:\n")
        print(f"  fedlora client join {address} --site SITE.toml --ca CA.pem --cert CERT.pem --key KEY.pem")
        return
    token = authority.invite(name, names, timedelta(hours=hours), datetime.now(UTC))
    print(f"{name} is invited to {', '.join(names)}. The token is good once, for {hours:g} hours; at the site:\n")
    print(f"  fedlora client join {address} --site SITE.toml --token {token}")


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
    print(f"{name} is revoked")


def _start(run: Path, out: Path, overrides: tuple[str, ...], door: "Door") -> None:
    from rich.console import Console

    from fedlora.cli.live import metric_name_in, print_outcome, progress_view
    from fedlora.cli.logs import log_to
    from fedlora.common.config import Occasion, idle_settings
    from fedlora.common.run_file import load_run
    from fedlora.server.disk.account import seconds_worked
    from fedlora.server.disk.recorded_rounds import recorded_rounds
    from fedlora.server.disk.status_file import StatusFile
    from fedlora.server.record.running_summary import Summarised, after_rounds
    from fedlora.server.whole_run import Rounds, Run, whole_run

    config = load_run(run, overrides)
    console = Console()
    log_to(console)
    known = after_rounds(recorded_rounds(out))
    status_file = StatusFile(out, config, known=known)

    @contextmanager
    def shown() -> "Iterator[Listener]":
        view = progress_view(title=config.run.name, metric_name=partial(metric_name_in, out), console=console)
        with view as picture, status_file:
            yield Summarised([status_file.show, picture], known=known)

    def opened(port: int) -> None:
        status_file.listening(port)
        host = door.address.rpartition(":")[0]
        console.print(f"listening on {host}:{port}", highlight=False)
        if not door.is_insecure:
            remedy = f"fedlora sites invite NAME --out {shlex.quote(str(out))}"
            console.print(f"to let a site in: {remedy}", highlight=False, soft_wrap=True)

    def served(rounds: Rounds) -> None:
        print(f"{config.run.name}: loading", flush=True)
        from fedlora.finished.resident_check import ResidentCheck
        from fedlora.server.deployment import serve
        from fedlora.server.sites.grpc.grid import RunStopped

        try:
            with ResidentCheck() as check:
                serve(rounds, door, check=check, opened=opened)
        except RunStopped as error:
            print(f"stopped: {error}", file=sys.stderr)
            raise typer.Exit(_STOPPED) from None

    notes = idle_settings(config, Occasion("server"))
    reached = whole_run(Run(config, out, config.federation.sites, shlex.join(sys.argv), notes), served, shown=shown())
    from fedlora.server.run_report import load_code

    print_outcome(
        console,
        reports=() if reached is None else reached.reports,
        metric_name=metric_name_in(out),
        out_dir=out,
        load_code=load_code(out, config),
        worked=seconds_worked(out),
    )


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
    from fedlora.common.run_folder import IDENTITY_FOLDER
    from fedlora.server.identity.authority import Authority

    folder = identity or out / IDENTITY_FOLDER
    if ca is not None:
        try:
            return Authority.external(folder, ca.read_bytes())
        except OSError as error:
            raise ConfigError(f"{ca}: cannot be read ({error.strerror}); expected a file in PEM") from error
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is no server's identity; start the server first")
    return Authority.open(folder, datetime.now(UTC))


def _run_of(out: Path) -> str:
    from fedlora.common.run_file import load_run
    from fedlora.common.run_folder import RUN_FILE

    if not (out / RUN_FILE).is_file():
        raise StoreError(f"{out} holds no run; start the server first, or name the run with --run")
    return load_run(out / RUN_FILE, aggregates_elsewhere=True).run.name
