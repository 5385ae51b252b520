"""A site takes part in runs: one lasting connection to the server, and for each run a worker over its own data."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.client.site.credentials import site_credentials
from fedlora.client.site.events import Listener, ignore
from fedlora.client.site.limits import own_site
from fedlora.client.site.outbox import Outbox
from fedlora.client.site.participation import Participation
from fedlora.client.site.session import Session
from fedlora.client.site.site_file import SiteConfig, for_site
from fedlora.client.site.state import SiteState
from fedlora.client.site.sum_signers import SiteSigners
from fedlora.client.worker.ledger import LEDGER_FOLDER
from fedlora.client.worker.seat import WorkerSeat
from fedlora.client.worker.source import WorkbenchSource
from fedlora.common.channels import Credentials
from fedlora.common.config import RunConfig
from fedlora.common.pem_files import PemFiles

if TYPE_CHECKING:
    from fedlora.training.own_trainer.made import MakeTrainer


def hold_and_take_part(
    address: str,
    config: SiteConfig,
    *,
    beside: Path,
    folder: Path,
    token: str | None,
    files: PemFiles | None,
    is_insecure: bool,
    make_trainer: "MakeTrainer | None" = None,
    listener: Listener = ignore,
) -> None:
    """Hold a site's folder, enrol with the token where that is still to be done, and take part.

    Args:
        folder: the site's.
        files: of a PKI of one's own, in place of a token.
        is_insecure: plain text, without credentials.

    Raises:
        FedloraError: the folder cannot be held, or the server does not let this site in.
    """
    with SiteState(folder) as state:
        state.forget_wish()
        name = config.site.name
        known = None if is_insecure else site_credentials(address, name, state=folder, token=token, files=files)
        take_part(
            address, config, beside=beside, state=state, credentials=known or (lambda: None),
            signer_of=SiteSigners(folder, address, files, is_insecure), make_trainer=make_trainer, listener=listener,
        )  # fmt: skip


def take_part(
    address: str,
    config: SiteConfig,
    *,
    beside: Path,
    state: SiteState,
    credentials: Callable[[], Credentials | None],
    signer_of: SiteSigners,
    make_trainer: "MakeTrainer | None" = None,
    listener: Listener = ignore,
) -> None:
    """Take part until the run is over or the operator wishes to leave.

    Args:
        address: of the server, HOST:PORT.
        beside: the folder that the site file's paths start from.
        state: the site's folder, which is held meanwhile.
        credentials: asked for at each connection.
        signer_of: signs for the site in secure sums.
        make_trainer: makes the site's own trainer in its worker, so it must be picklable; None for fedlora's.
        listener: hears what happens here.

    Raises:
        RunError: the server does not let this site in.
    """
    session = Session(
        address,
        config.site.name,
        credentials=credentials,
        make_site=lambda run: _site_of(
            run,
            config,
            beside=beside,
            state=state,
            signer_of=signer_of,
            make_trainer=make_trainer,
            listener=listener,
        ),
        leaves=lambda: state.wish() == "leave",
        listener=listener,
    )
    session.run()


def _site_of(
    run: RunConfig,
    config: SiteConfig,
    *,
    beside: Path,
    state: SiteState,
    signer_of: SiteSigners,
    make_trainer: "MakeTrainer | None",
    listener: Listener,
) -> Participation:
    own = own_site(run, config)
    source = WorkbenchSource(
        key=uuid.uuid4().hex,
        config=for_site(run, config, beside=beside),
        site=own,
        make_trainer=make_trainer,
        client_names=(own.name,),
        moments_folder=state.folder / "optimizer",
        sums_folder=state.folder / "sums",
        signer_of=signer_of,
        ledger_folder=state.folder / LEDGER_FOLDER,
        explain_failures=True,  # To this process, which logs it; only the code leaves the site.
    )
    environment = {} if config.worker.gpu is None else {"CUDA_VISIBLE_DEVICES": config.worker.gpu}
    return Participation(
        run,
        config,
        seat=WorkerSeat(source.make_client_app_over_files, environment),
        outbox=Outbox(state.folder),
        is_paused=lambda: state.wish() == "paused",
        listener=listener,
    )
