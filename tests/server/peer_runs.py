"""A run over peers, in this thread, until it is over or somebody ends it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from peers import LORA, Behaviour, Peer, make_grid

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event
from fedlora.server.record.round_report import RoundReport
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites

Hear = Callable[[Event, Mapping[str, Peer]], None]


class Killed(Exception):  # noqa: N818 (no error: the test's own)
    """The process ends here."""


def run_over(
    folder: Path,
    behaviours: Mapping[str, Behaviour],
    hear: Hear = lambda _event, _peers: None,
    **federation: object,
) -> tuple[tuple[RoundReport, ...], dict[str, Peer]]:
    """Do the rounds that are left, and return all reports, and the peers by name.

    Args:
        hear: is told each event of the rounds, in their thread; what it raises ends the run there, as a kill would.
    """
    grid, exchange = make_grid(folder, lambda _event: None)
    peers = {name: Peer(grid, exchange, name, behaviour) for name, behaviour in behaviours.items()}
    settings = {"rounds": 3, "sites": len(peers), "quorum": 0.5, **federation}
    config = RunConfig.model_validate(
        {"federation": settings, "data": {"labels": ["a", "b"]}, "lora": LORA, "aggregation": {"method": "fedit"}}
    )
    store = RunFolder(folder)
    rounds = FederatedRun(
        config, FedIT(), store, num_sites=len(peers), command="test", listener=lambda event: hear(event, peers)
    )
    rounds.start(LastingSites(grid))
    checkpoint = store.latest()
    assert checkpoint is not None
    return checkpoint.reports, peers
