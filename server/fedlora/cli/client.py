"""`fedlora client join | pause | resume | leave`. Heavy imports stay inside."""

import logging
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.common.errors import ConfigError, FedloraError

if TYPE_CHECKING:
    from fedlora.client.site import Site
    from fedlora.client.site_file import SiteConfig
    from fedlora.client.site_identity import SiteIdentity
    from fedlora.client.state import SiteState
    from fedlora.common.channels import Credentials
    from fedlora.common.config import RunConfig

logger = logging.getLogger(__name__)

_INTERRUPTED = 130
_RENEWAL_PAUSE_SECONDS = 600.0

client_app = typer.Typer(help="Take part in a run as a site.", no_args_is_help=True)

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
) -> None:
    """Take part until the run is over. It reconnects by itself; the same command goes on after a crash."""
    from fedlora.client.site_file import load_site, state_folder
    from fedlora.client.state import SiteState
    from fedlora.common.channels import require_loopback, split_address

    _log()
    config = load_site(site)
    split_address(address)
    if insecure:
        require_loopback(address)
    with SiteState(state_folder(site, config)) as state:
        state.control("")
        credentials = (
            None if insecure else _Credentials(address, config.site.name, state.folder, token, (ca, cert, key))
        )
        try:
            _join(address, site, config, state, credentials)
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


def _join(
    address: str, path: Path, config: "SiteConfig", state: "SiteState", credentials: "_Credentials | None"
) -> None:
    from fedlora.client.session import Session

    session = Session(
        address,
        config.site.name,
        credentials=credentials or (lambda: None),
        make_site=partial(_make_site, path, config, state),
        leaves=lambda: state.wish() == "leave",
    )
    session.run()


def _make_site(path: Path, config: "SiteConfig", state: "SiteState", run: "RunConfig") -> "Site":
    import uuid

    from fedlora.client.outbox import Outbox
    from fedlora.client.site import Site
    from fedlora.client.site_file import for_site
    from fedlora.client.source import OwnSite, WorkbenchSource
    from fedlora.client.worker_seat import WorkerSeat

    own = OwnSite(config.site.name, config.data.only_group, config.limits.max_steps)
    source = WorkbenchSource(
        key=uuid.uuid4().hex,
        config=for_site(run, config, beside=path.parent),
        site=own,
        moments_folder=state.folder / "optimizer",
        explain_failures=True,  # To this process, which logs it; only the code leaves the site.
    )
    environment = {} if config.worker.gpu is None else {"CUDA_VISIBLE_DEVICES": config.worker.gpu}
    return Site(
        run,
        config,
        seat=WorkerSeat(source.make_client_app_over_files, environment),
        outbox=Outbox(state.folder),
        is_paused=lambda: state.wish() == "paused",
    )


class _Credentials:
    """The site's credentials at each connection; enrols at the first, renews in good time."""

    def __init__(
        self,
        address: str,
        name: str,
        folder: Path,
        token: str | None,
        files: tuple[Path | None, Path | None, Path | None],
    ) -> None:
        from fedlora.client.joining import enrol
        from fedlora.client.site_identity import SiteIdentity

        self._address, self._folder, self._files = address, folder, files
        self._tried = 0.0
        if any(files):
            if not all(files):
                raise ConfigError("--ca, --cert and --key go together; give all three, or none of them")
        elif token is not None:
            enrol(address, token, name=name, state=folder)
        elif not SiteIdentity.exists(folder):
            raise ConfigError(
                f"{folder}: this site is not enrolled yet; ask the server's operator for an invitation, "
                "and give its token: --token TOKEN"
            )
        if (found := self._identity()).name != name:
            raise ConfigError(
                f"the certificate is for {found.name!r}, and the site file names {name!r}; make them agree"
            )

    def __call__(self) -> "Credentials":
        from fedlora.client.joining import credentials_of, renewed

        identity = self._identity()
        is_ours = not any(self._files)
        if identity.needs_renewal(datetime.now(UTC)) and time.monotonic() - self._tried > _RENEWAL_PAUSE_SECONDS:
            self._tried = time.monotonic()
            logger.warning("the certificate ends on %s", f"{identity.expiry:%Y-%m-%d %H:%M} UTC")
            if is_ours:
                try:
                    identity = renewed(self._address, identity, state=self._folder)
                except FedloraError as error:
                    logger.warning("it could not be renewed yet: %s", error)
        return credentials_of(identity)

    def _identity(self) -> "SiteIdentity":
        from fedlora.client.site_identity import SiteIdentity

        ca, certificate, key = self._files
        if ca is not None and certificate is not None and key is not None:
            return SiteIdentity.external(ca, certificate, key, now=datetime.now(UTC))
        return SiteIdentity.load(self._folder)


def _control(path: Path, wish: str, done: str) -> None:
    from fedlora.client.site_file import load_site, state_folder
    from fedlora.client.state import SiteState

    SiteState(state_folder(path, load_site(path))).control(wish)
    print(done)


def _log() -> None:
    """Print what happens, a line each with its time."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("flwr").setLevel(logging.WARNING)
