"""Case 12: another base model, as far as a server can see it, which is what a site says of it before each round.

Of an update itself nothing tells which weights it was trained on: adapters of two base models of one shape look alike.
So the word of the site is asked for at each connection, and one that has changed its model meanwhile is out.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peer_runs import run_over
from peers import Peer, description, honest

from fedlora.server.record.events import Event, RoundEnded


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@pytest.mark.parametrize(
    "other",
    [{"base_model_fingerprint": "sha256:1"}, {"fingerprints": {"tokenizer": "sha256:1"}}],
    ids=["weights", "tokenizer"],
)
def test_case_12_a_site_that_comes_back_with_another_base_model_has_no_part_in_the_rounds_after(
    tmp_path: Path, other: dict[str, object]
) -> None:
    def come_back(event: Event, peers: Mapping[str, Peer]) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 1:
            changed = peers["changed"]
            changed.disconnect()
            changed.grid.connect("changed", changed.send)
            changed.grid.ready("changed", dataclasses.replace(description("changed"), **other))

    reports, peers = run_over(tmp_path, {"a": honest, "b": honest, "changed": honest}, come_back, patience=0.2)
    assert [sorted(report.clients) for report in reports[1:]] == [["a", "b", "changed"], ["a", "b"], ["a", "b"]]
    assert [request.train.round for request in peers["changed"].received if request.HasField("train")] == [1]
