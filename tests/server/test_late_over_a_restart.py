"""`late = "next_round"` over a restart of the server: what was accepted counts, what was not is asked for anew."""

import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peer_runs import Killed, run_over
from peers import Behaviour, Peer, after, honest

from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, RoundEnded, RoundStarted, UpdateArrived

SITES = ["a", "b", "slow"]
LATE = {"deadline": 1.0, "late": "next_round"}


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def sites(slow: Behaviour = honest) -> dict[str, Behaviour]:
    return {"a": honest, "b": honest, "slow": slow}


def trainings(peer: Peer) -> list[int]:
    """Return the rounds that a site was asked to train for."""
    return [request.train.round for request in peer.received if request.HasField("train")]


def test_a_late_update_that_was_accepted_counts_after_a_kill_before_its_round_was_over(tmp_path: Path) -> None:
    gate = threading.Event()

    def open_then_die(event: Event, _peers: Mapping[str, Peer]) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 1:
            assert event.report.refused == {"slow": "late"}
            gate.set()
        if isinstance(event, UpdateArrived) and event.client == "slow" and not event.reason:
            raise Killed

    with pytest.raises(Killed):
        run_over(tmp_path, sites(after(gate)), open_then_die, **LATE)
    before = RunFolder(tmp_path).latest()
    assert before is not None
    killed_in = len(before.reports)
    reports, peers = run_over(tmp_path, sites(), **LATE)
    assert reports[killed_in].clients["slow"].age == killed_in - 1 >= 1
    # It was accepted: nobody asks for it again, nor for another of the same site in that round.
    assert killed_in not in trainings(peers["slow"])
    assert all(sorted(report.clients) == SITES for report in reports[killed_in + 1 :])


def test_a_site_that_was_late_when_the_server_ended_takes_part_from_the_next_round(tmp_path: Path) -> None:
    gate = threading.Event()

    def die(event: Event, _peers: Mapping[str, Peer]) -> None:
        if isinstance(event, RoundStarted) and event.round == 2:
            raise Killed

    with pytest.raises(Killed):
        run_over(tmp_path, sites(after(gate)), die, **LATE)
    # Round 2 has its draw on disk, without the site that was still at work for round 1.
    reports, peers = run_over(tmp_path, sites(), **LATE)
    gate.set()
    assert [sorted(report.clients) for report in reports[1:]] == [["a", "b"], ["a", "b"], SITES]
    assert trainings(peers["slow"]) == [3]
