"""`fedlora client join | status | pause | resume | leave`. Heavy imports stay inside."""

import logging
import os
import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.json_output import Json, print_json
from fedlora.cli.log_options import FileOption, FormatOption, LogFormat
from fedlora.cli.metrics_option import MetricsOption, watched
from fedlora.cli.outputs import Said, ServerKnown, SiteStatus
from fedlora.cli.trace_option import TraceOption, tracer_for

if TYPE_CHECKING:
    from fedlora.client.site.events import Listener
    from fedlora.client.site.site_metrics import SiteMetrics
    from fedlora.common.pem_files import PemFiles

logger = logging.getLogger(__name__)

client_app = typer.Typer(help="Take part in a run as a site.", no_args_is_help=True)


def _print_site_file(is_wanted: bool) -> None:
    from fedlora.client.site.printed_site import commented_site

    if is_wanted:
        print(commented_site(), end="")
        raise typer.Exit


SiteFile = Annotated[Path, typer.Option("--site", metavar="SITE.toml", help="The site file: name, data, limits.")]


@client_app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server.")],
    site: SiteFile,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="From the invitation; for the first time only. `-` asks for it, or reads standard input; typed here, "
            "others on this machine see it in the list of processes. Also the variable FEDLORA_TOKEN.",
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The token lies in this file.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without certificates, on loopback alone.")
    ] = False,
    ca: Annotated[Path | None, typer.Option(metavar="PEM", help="The authority of a PKI of your own ...")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="... the site's certificate from it ...")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="... and its key.")] = None,
    log_format: FormatOption = LogFormat.TEXT,
    log_file: FileOption = None,
    metrics: MetricsOption = None,
    trace: TraceOption = None,
    _print_site: Annotated[
        bool,
        typer.Option(
            "--print-site", callback=_print_site_file, is_eager=True, help="Print a commented site file, and end."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Take part until the run is over. It reconnects by itself; the same command goes on after a crash."""
    from fedlora.cli.logs import Log, logging_to

    # What it says, we say ourselves. Read when grpc is first imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with logging_to(Log(log_format, log_file)), terminated_as_interrupted():
        logging.getLogger("flwr").setLevel(logging.WARNING)
        try:
            _join(
                address,
                site,
                (token, token_file),
                insecure=insecure,
                typed=(ca, cert, key),
                metrics=metrics,
                trace=trace,
            )
        except KeyboardInterrupt as interrupt:
            logger.info("interrupted; the same command goes on")
            raise typer.Exit(exit_status(interrupt)) from None
    if as_json:
        print_json(Said("the run is over, or this site has left", str(site)))


def _join(
    address: str,
    site: Path,
    tokens: tuple[str | None, Path | None],
    *,
    insecure: bool,
    typed: tuple[Path | None, Path | None, Path | None],
    metrics: str | None,
    trace: Path | None,
) -> None:
    from fedlora.cli.pem_options import pem_files
    from fedlora.cli.token_options import token_given
    from fedlora.client.site.before_enrolling import check_before_enrolling
    from fedlora.client.site.events import told_to
    from fedlora.client.site.site_file import load_site, state_folder
    from fedlora.client.site.taking_part import hold_and_take_part
    from fedlora.common.addresses import require_loopback, split_address
    from fedlora.common.certificates import parse_token
    from fedlora.common.errors import ConfigError

    config = load_site(site)
    split_address(address)
    if insecure:
        require_loopback(address)
    files = None if insecure else pem_files(*typed)
    token = token_given(*tokens)
    if token is not None:
        if insecure or files is not None:
            raise ConfigError("a token is for a server with an authority of its own; leave out --insecure and --ca")
        parse_token(token)
        check_before_enrolling(config, beside=site.parent)
    folder = state_folder(site, config)
    listeners: list[Listener] = []
    watching: AbstractContextManager[None] = nullcontext()
    if metrics is not None:
        site_metrics = _site_metrics(address, folder, insecure=insecure, files=files)
        listeners.append(site_metrics)
        watching = watched(
            metrics,
            site_metrics,
            obstacle=lambda: site_metrics.obstacle,
            is_finished=lambda: site_metrics.is_finished,
        )
    with tracer_for("fedlora-client", trace) as tracer, watching:
        if tracer is not None:
            from fedlora.client.site.site_traces import SiteTraces

            listeners.append(SiteTraces(tracer))
        hold_and_take_part(
            address, config, beside=site.parent, folder=folder, token=token, files=files, is_insecure=insecure,
            listener=told_to(listeners),
        )  # fmt: skip


def _site_metrics(address: str, folder: Path, *, insecure: bool, files: "PemFiles | None") -> "SiteMetrics":
    from fedlora.client.site.gpus import gpu_reader
    from fedlora.client.site.identity import SiteIdentity
    from fedlora.client.site.site_metrics import SiteMetrics

    def certificate() -> bytes:
        return SiteIdentity.load(folder, address).certificate_pem if files is None else files.certificate.read_bytes()

    return SiteMetrics(certificate=None if insecure else certificate, gpus=gpu_reader())


@client_app.command()
def status(site: SiteFile, as_json: Json = False) -> None:
    """Say that this site's client is at work, how long its certificates are good, and what is spent of privacy.

    An error if no client runs.
    """
    from fedlora.client.site.identity import SiteIdentity
    from fedlora.client.site.site_file import load_site, state_folder
    from fedlora.client.site.spent import spent_in_all
    from fedlora.client.site.state import SiteState

    config = load_site(site, needs_data=False)
    state = SiteState(state_folder(site, config))
    state.require_client()
    standing = "paused" if state.wish() == "paused" else "at work"
    identities, damaged = SiteIdentity.found_in(state.folder)
    spent = spent_in_all(state.folder, config.site.name)
    if as_json:
        servers = tuple(ServerKnown(found.address, found.expiry.isoformat(timespec="seconds")) for found in identities)
        print_json(SiteStatus(config.site.name, standing, servers, tuple(damaged), spent))
        return
    print(f"{config.site.name} is {standing}")
    for identity in identities:
        print(f"enrolled at {identity.address}; the certificate is good until {identity.expiry:%Y-%m-%d}")
    for line in damaged:
        print(line)
    if spent is not None:
        for run in spent.runs:
            print(f"run {run.run}: an epsilon of {run.epsilon:.3g} is spent (delta {run.delta:g})")
        most = "" if config.limits.epsilon is None else f" of {config.limits.epsilon:g}"
        print(f"all runs together: an epsilon of {spent.epsilon:.3g}{most} is spent (delta {spent.delta:g})")


@client_app.command()
def pause(site: SiteFile, as_json: Json = False) -> None:
    """Take no part for now; what is being trained is finished first."""
    go_on = f"; go on with: fedlora client resume --site {shlex.quote(str(site))}"
    _control(site, "paused", "paused", go_on, as_json=as_json)


@client_app.command()
def resume(site: SiteFile, as_json: Json = False) -> None:
    """Take part again."""
    _control(site, "", "resumed", as_json=as_json)


@client_app.command()
def leave(site: SiteFile, as_json: Json = False) -> None:
    """End the site's client. It can join again."""
    _control(site, "leave", "leaving", as_json=as_json)


def _control(path: Path, wish: str, done: str, more: str = "", *, as_json: bool) -> None:
    from fedlora.client.site.site_file import load_site, state_folder
    from fedlora.client.site.state import SiteState

    config = load_site(path, needs_data=False)
    SiteState(state_folder(path, config)).control(wish)
    if as_json:
        print_json(Said(done, config.site.name))
    else:
        print(f"{done}{more}")
