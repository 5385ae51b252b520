"""A run that goes on after its end: with more rounds, or no longer ended early."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Peer, honest, make_grid

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.messages import Score, TrainReceipt
from fedlora.common.wire import Receipt
from fedlora.server.disk.store import Checkpoint, RunFolder
from fedlora.server.record.events import Event, Noted, RunStarted
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.v1 import session_pb2


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def ever_worse(peer: Peer, request: session_pb2.Request) -> Receipt | None:
    """Train, and find each round's adapter worse on validation than the one before."""
    receipt = honest(peer, request)
    if not isinstance(receipt, TrainReceipt):
        return receipt
    return dataclasses.replace(receipt, before=Score(2, float(receipt.round), 0.5))


def run_on(folder: Path, *, rounds: int, early_stopping: int = 0) -> tuple[Checkpoint, list[Event]]:
    """Do what is left of a run, and return where it stands and what was told."""
    config = RunConfig.model_validate(
        {
            "federation": {"rounds": rounds, "sites": 2},
            "data": {"labels": ["a", "b"]},
            "lora": LORA,
            "aggregation": {"method": "fedit"},
            "evaluation": {"early_stopping": early_stopping},
        }
    )
    told: list[Event] = []
    grid, exchange = make_grid(folder, lambda _event: None)
    for name in ("a", "b"):
        Peer(grid, exchange, name, ever_worse)
    run = FederatedRun(config, FedIT(), RunFolder(folder), num_sites=2, command="", listener=told.append)
    run.start(LastingSites(grid))
    checkpoint = RunFolder(folder).latest()
    assert checkpoint is not None
    return checkpoint, told


def started(told: list[Event]) -> RunStarted:
    return next(event for event in told if isinstance(event, RunStarted))


def test_a_prolonged_run_ends_in_the_adapter_of_one_that_was_planned_so(tmp_path: Path) -> None:
    run_on(tmp_path / "prolonged", rounds=1)
    prolonged, told = run_on(tmp_path / "prolonged", rounds=3)
    planned, _ = run_on(tmp_path / "planned", rounds=3)
    assert prolonged.round == planned.round == 3
    assert prolonged.stored.sha256 == planned.stored.sha256
    assert (started(told).next_round, started(told).is_over) == (2, False)
    again, told = run_on(tmp_path / "prolonged", rounds=3)
    assert (again.round, started(told).is_over) == (3, True)


def test_a_run_that_ended_early_goes_on_when_it_is_no_longer_to_end(tmp_path: Path) -> None:
    ended, _ = run_on(tmp_path, rounds=9, early_stopping=2)
    assert ended.reports[-1].ended_early
    at = ended.round
    for rounds in (9, 12):
        still, told = run_on(tmp_path, rounds=rounds, early_stopping=2)
        assert (still.round, started(told).is_over) == (at, True)
        lines = [line for event in told if isinstance(event, Noted) for line in event.lines]
        assert lines == [
            f"the run ended early, after round {at} of {rounds}, by evaluation.early_stopping = 2; it goes on with "
            "--set evaluation.early_stopping=0, or a higher number"
        ]
    later, told = run_on(tmp_path, rounds=12, early_stopping=3)
    assert (later.round, later.reports[-1].ended_early, started(told).is_over) == (at + 1, True, False)
    last, _ = run_on(tmp_path, rounds=7, early_stopping=0)
    assert (last.round, last.reports[-1].ended_early) == (7, False)
