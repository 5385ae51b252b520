"""How many of the sites' held-out examples are judged in a round: as many as asked for, and all where they suffice."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Behaviour, Peer, description, honest, make_grid

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.messages import EvaluateReceipt, EvaluateRequest, Score
from fedlora.common.wire import Receipt, read_request
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.round_report import HeldOutReport
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.v1 import session_pb2

SIZES = {"a": 98, "b": 5, "c": 5}


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def judging(size: int) -> Behaviour:
    """Judge as many held-out examples as asked for, of so many."""

    def behave(peer: Peer, request: session_pb2.Request) -> Receipt | None:
        if not request.HasField("evaluate"):
            return honest(peer, request)
        asked = read_request(request)
        assert isinstance(asked, EvaluateRequest)
        num_examples = size if asked.num_examples is None else min(size, asked.num_examples)
        return EvaluateReceipt(asked.run, asked.round, 0, {peer.name: Score(num_examples, 0.5, 0.75)}, {})

    return behave


def judged_with(budget: int, folder: Path) -> list[HeldOutReport]:
    """Return what is judged at the start and in each of two rounds."""
    config = RunConfig.model_validate(
        {
            "federation": {"rounds": 2, "sites": len(SIZES)},
            "data": {"labels": ["a", "b"]},
            "lora": LORA,
            "aggregation": {"method": "fedit"},
            "evaluation": {"round_examples": budget},
        }
    )
    grid, exchange = make_grid(folder, lambda _event: None)
    for name, size in SIZES.items():
        peer = Peer(grid, exchange, name, judging(size))
        grid.ready(name, dataclasses.replace(description(name), num_held_out=size))
        assert peer.received == []
    run = FederatedRun(config, FedIT(), RunFolder(folder), num_sites=len(SIZES), command="")
    run.start(LastingSites(grid))
    checkpoint = RunFolder(folder).latest()
    assert checkpoint is not None
    return [report.held_out for report in checkpoint.reports if report.held_out is not None]


def test_a_budget_of_more_than_there_is_judges_everything_in_every_round(tmp_path: Path) -> None:
    judged = judged_with(256, tmp_path)
    assert [(held_out.overall.num_examples, held_out.is_complete) for held_out in judged] == [(108, True)] * 3


def test_a_smaller_budget_is_judged_at_each_site(tmp_path: Path) -> None:
    judged = judged_with(60, tmp_path)
    assert [(held_out.overall.num_examples, held_out.is_complete) for held_out in judged] == [
        (108, True),
        (70, False),
        (108, True),
    ]
    assert {name: score.num_examples for name, score in judged[1].groups.items()} == {"a": 60, "b": 5, "c": 5}
