"""What the server's optimiser keeps is kept with each round: a run goes on from it, and does again what is damaged."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Peer, honest, make_grid

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.server.disk.store import Checkpoint, RunFolder
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.run_optimizer import server_optimizer_of
from fedlora.server.sites import LastingSites


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def run_on(folder: Path, *, rounds: int, **federation: object) -> Checkpoint:
    """Do what is left of a run, and return where it stands."""
    config = RunConfig.model_validate(
        {
            "federation": {"rounds": rounds, "sites": 2, **federation},
            "data": {"labels": ["a", "b"]},
            "lora": LORA,
            "aggregation": {"method": "fedit"},
        }
    )
    grid, exchange = make_grid(folder, lambda _event: None)
    for name in ("a", "b"):
        Peer(grid, exchange, name, honest)
    optimizer = server_optimizer_of(config.federation)
    run = FederatedRun(config, FedIT(), RunFolder(folder), server_optimizer=optimizer, num_sites=2, command="")
    run.start(LastingSites(grid))
    checkpoint = RunFolder(folder).latest()
    assert checkpoint is not None
    return checkpoint


@pytest.mark.parametrize("acts_on", ["factors", "product"])
@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_a_run_goes_on_from_what_is_kept_and_does_again_what_is_damaged(
    tmp_path: Path, kind: str, acts_on: str
) -> None:
    settings = {"server_optimizer": kind, "server_acts_on": acts_on}
    whole = run_on(tmp_path / "whole", rounds=3, **settings)
    for is_damaged in (False, True):
        folder = tmp_path / f"stopped-{is_damaged}"
        run_on(folder, rounds=2, **settings)
        if is_damaged:
            (folder / "rounds" / "0002" / "state.safetensors").write_bytes(b"damaged")
        again = run_on(folder, rounds=3, **settings)
        assert again.stored.sha256 == whole.stored.sha256
        assert again.reports[-1].state_sha256 == whole.reports[-1].state_sha256 != ""


def test_without_one_nothing_is_kept_and_a_step_of_just_the_change_is_the_same_run(tmp_path: Path) -> None:
    plain = run_on(tmp_path / "plain", rounds=3)
    still = run_on(tmp_path / "still", rounds=3, server_optimizer="momentum", server_momentum=0.0)
    moving = run_on(tmp_path / "moving", rounds=3, server_optimizer="momentum")
    assert plain.stored.sha256 == still.stored.sha256 != moving.stored.sha256
    assert plain.reports[1].adapter_sha256 == moving.reports[1].adapter_sha256
    assert plain.reports[-1].state_sha256 == ""
    assert [report.aggregation and report.aggregation.server_step for report in plain.reports] == [None] * 4
