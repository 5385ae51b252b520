"""What a worker is given to build its workbench from. Light: whoever starts workers needs no torch for it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.clientapp import ClientApp

from fedlora.client.worker.own_site import OwnSite
from fedlora.common.config import RunConfig
from fedlora.training.data import FederatedData, load_federated_data, load_own_data

if TYPE_CHECKING:
    from fedlora.client.worker.app import Bench
    from fedlora.client.worker.sums.own_part import OwnSums
    from fedlora.client.worker.sums.signer import SignerOf
    from fedlora.models.base_model import BaseModel
    from fedlora.training.own_trainer.made import MakeTrainer


@dataclass(frozen=True, eq=False)
class WorkbenchSource:
    """A run, and what of it does not come from its run file.

    Attributes:
        key: two sources with one key give the same workbench.
        data, base_model: a user's own, in place of what the run file names.
        site: the site whose own data these are; None in a simulation, where one workbench serves all clients.
        explain_failures: whether the server belongs to the same person and may be told the text of an error.
        moments_folder: where clients keep the moments of their optimisers, if the run asks for that.
        sums_folder: where clients keep their parts in secure sums, if the run asks for that.
        signer_of: with `sums_folder`, who signs for a client in these.
        ledger_folder: where clients keep their ledgers, if the run makes examples private.
        make_trainer: makes each client's own trainer, which has its data; None for fedlora's.
        client_names: with `make_trainer`, who the clients are.
    """

    key: str
    config: RunConfig
    data: FederatedData | None = None
    base_model: "BaseModel | None" = None
    site: OwnSite | None = None
    explain_failures: bool = False
    moments_folder: Path | None = None
    sums_folder: Path | None = None
    signer_of: "SignerOf | None" = None
    ledger_folder: Path | None = None
    make_trainer: "MakeTrainer | None" = None
    client_names: tuple[str, ...] = ()

    def make_client_app(self) -> ClientApp:
        """Return the ClientApp over this source; the workbench is loaded at its first message."""
        from fedlora.client.worker.app import make_client_app

        return make_client_app(self.load, key=self.key, explain_failures=self.explain_failures, sums=self._sums())

    def make_client_app_over_files(self) -> ClientApp:
        """Return the same app for a site, where adapters come and go as files."""
        from fedlora.client.worker.app import make_client_app
        from fedlora.client.worker.files_mod import adapters_as_files

        return make_client_app(
            self.load,
            key=self.key,
            explain_failures=self.explain_failures,
            sums=self._sums(),
            mods=[adapters_as_files],
        )

    def _sums(self) -> "OwnSums | None":
        if self.sums_folder is None or self.signer_of is None:
            return None
        from fedlora.client.worker.sums.own_part import OwnSums

        least_members = 1 if self.site is None else self.site.least_cohort
        return OwnSums(self.config, self.sums_folder, self.signer_of, least_members=least_members)

    def load(self) -> "Bench":
        """Return the workbench: reads the data and the base model, which takes seconds."""
        import torch

        from fedlora.client.worker.ledger import Ledger
        from fedlora.client.worker.workbench import Workbench
        from fedlora.training.optimizer_state import MomentsFolder

        # Small matrices gain nothing from a second thread, and cost double the CPU time.
        torch.set_num_threads(1)
        moments = None if self.moments_folder is None else MomentsFolder(self.moments_folder)
        ledger = None if self.ledger_folder is None else Ledger(self.ledger_folder)
        if self.make_trainer is not None:
            from fedlora.client.worker.trainer_bench import TrainerBench

            return TrainerBench(self.config, self.make_trainer, self.client_names, site=self.site, moments=moments)
        if self.site is not None:
            data = load_own_data(self.config, client=self.site.name, only_group=self.site.only_group)
            return Workbench(self.config, data, site=self.site, moments=moments, ledger=ledger)
        data = self.data or _read_again(self.config)
        return Workbench(self.config, data, self.base_model, moments=moments, ledger=ledger)


def _read_again(config: RunConfig) -> FederatedData:
    """Return the run's data, without the warnings of which whoever started the workers has been told."""
    data_logger = logging.getLogger("fedlora.training.data")
    before = data_logger.level
    data_logger.setLevel(logging.ERROR)
    try:
        return load_federated_data(config)
    finally:
        data_logger.setLevel(before)
