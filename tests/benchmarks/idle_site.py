"""A site that does nothing: python idle_site.py ADDRESS NAME TOKEN FOLDER ADAPTER NUM_HELD_OUT

The process that `fedlora client join` is, of the same parts (enrolment, Session, Participation, WorkerSeat), over
the app of `idle_app`. It ends when the run is over.
"""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from idle_app import make_idle_app

if TYPE_CHECKING:
    from fedlora.client.site.participation import Participation
    from fedlora.common.config import RunConfig


def main(address: str, name: str, token: str, folder: Path, adapter: Path, num_held_out: int) -> None:
    """Take part until the run is over."""
    # Not above: the workers import this file again.
    from fedlora.client.site.joining import credentials_of, enrol
    from fedlora.client.site.session import Session
    from fedlora.client.site.state import SiteState

    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s")
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with SiteState(folder) as state:
        credentials = credentials_of(enrol(address, token, name=name, state=state.folder))
        Session(
            address,
            name,
            credentials=lambda: credentials,
            make_site=partial(_make_site, address, name, state.folder, adapter, num_held_out),
        ).run()


def _make_site(
    address: str, name: str, folder: Path, adapter: Path, num_held_out: int, run: "RunConfig"
) -> "Participation":
    from fedlora.client.site.limits_section import LimitsSection
    from fedlora.client.site.outbox import Outbox
    from fedlora.client.site.participation import Participation
    from fedlora.client.site.site_file import SiteConfig, SiteDataSection, SiteSection
    from fedlora.client.site.sum_signers import SiteSigners
    from fedlora.client.worker.seat import WorkerSeat
    from fedlora.client.worker.sums.own_part import OwnSums

    sums = OwnSums(run, folder / "sums", SiteSigners(folder, address)) if run.privacy.secure_sums else None
    limits = LimitsSection(base_models=(run.model.name,), max_rounds=run.federation.rounds, least_examples=1)
    return Participation(
        run,
        SiteConfig(site=SiteSection(name=name), data=SiteDataSection(path="nothing"), limits=limits),
        seat=WorkerSeat(partial(make_idle_app, name, adapter, num_held_out, sums), {}),
        outbox=Outbox(folder),
        is_paused=lambda: False,
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]), int(sys.argv[6]))
