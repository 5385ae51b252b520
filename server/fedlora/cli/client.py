"""`fedlora client join | pause | resume | leave`. Heavy imports stay inside."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

_INTERRUPTED = 130

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
        str | None, typer.Option(metavar="TOKEN", help="From the invitation; for the first time only.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text without certificates, on loopback alone.")
    ] = False,
    ca: Annotated[Path | None, typer.Option(metavar="PEM", help="The authority of a PKI of your own ...")] = None,
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="... the site's certificate from it ...")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="... and its key.")] = None,
    _print_site: Annotated[
        bool,
        typer.Option(
            "--print-site", callback=_print_site_file, is_eager=True, help="Print a commented site file, and end."
        ),
    ] = False,
) -> None:
    """Take part until the run is over. It reconnects by itself; the same command goes on after a crash."""
    from fedlora.cli.pem_options import pem_files
    from fedlora.client.site.credentials import site_credentials
    from fedlora.client.site.site_file import load_site, state_folder
    from fedlora.client.site.state import SiteState
    from fedlora.client.site.taking_part import take_part
    from fedlora.common.channels import require_loopback, split_address

    _log()
    config = load_site(site)
    split_address(address)
    if insecure:
        require_loopback(address)
    files = None if insecure else pem_files(ca, cert, key)
    with SiteState(state_folder(site, config)) as state:
        state.control("")
        name = config.site.name
        known = None if insecure else site_credentials(address, name, state=state.folder, token=token, files=files)
        try:
            take_part(address, config, beside=site.parent, state=state, credentials=known or (lambda: None))
        except KeyboardInterrupt:
            print("interrupted; the same command goes on")
            raise typer.Exit(_INTERRUPTED) from None


@client_app.command()
def pause(site: SiteFile) -> None:
    """Take no part for now; what is being trained is finished first."""
    _control(site, "paused", "paused; go on with: fedlora client resume")


@client_app.command()
def resume(site: SiteFile) -> None:
    """Take part again."""
    _control(site, "", "resumed")


@client_app.command()
def leave(site: SiteFile) -> None:
    """End the site's client. It can join again."""
    _control(site, "leave", "leaving")


def _control(path: Path, wish: str, done: str) -> None:
    from fedlora.client.site.site_file import load_site, state_folder
    from fedlora.client.site.state import SiteState

    SiteState(state_folder(path, load_site(path))).control(wish)
    print(done)


def _log() -> None:
    """Print what happens, a line each with its time."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("flwr").setLevel(logging.WARNING)
