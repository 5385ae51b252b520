"""Rounds over sites that are slow, gone, late or failing: they end, the run goes on, and everybody is told."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Behaviour, Peer, after, failing, honest, make_grid, silent

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.messages import Failure
from fedlora.common.wire import Receipt
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, Noted, UpdateArrived, Waiting
from fedlora.server.record.round_report import RoundReport
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.server.sites.grpc.grid import RunStopped
from fedlora.v1 import session_pb2


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


class Run:
    """A run over peers, in a thread."""

    def __init__(self, folder: Path, behaviours: dict[str, Behaviour], **federation: object) -> None:
        self.events: list[object] = []
        self.grid, self.exchange = make_grid(folder, self.events.append)
        settings = {"rounds": 2, "sites": len(behaviours), "quorum": 0.5, **federation}
        self.config = RunConfig.model_validate(
            {
                "federation": settings,
                "data": {"labels": ["a", "b"]},
                "lora": LORA,
                "aggregation": {"method": "fedit"},
            }
        )
        self.folder = RunFolder(folder)
        self.peers = {name: Peer(self.grid, self.exchange, name, behaviour) for name, behaviour in behaviours.items()}
        self.error: BaseException | None = None

    def start(self) -> "Run":
        strategy = FederatedRun(
            self.config, FedIT(), self.folder,
            num_sites=self.config.federation.sites, command="test", listener=self._hear,
        )  # fmt: skip

        def run() -> None:
            try:
                strategy.start(LastingSites(self.grid))
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        return self

    def _hear(self, event: Event) -> None:
        self.events.append(event)

    def reports(self, seconds: float = 30) -> list[RoundReport]:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), self.events[-5:]
        if self.error is not None:
            raise self.error
        checkpoint = self.folder.latest()
        assert checkpoint is not None
        return list(checkpoint.reports)

    def wait_for(self, kind: type, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not any(isinstance(event, kind) for event in self.events):
            assert time.monotonic() < deadline, self.events
            time.sleep(0.01)


def test_every_site_of_an_honest_run_counts_and_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": honest, "b": honest, "c": honest}).start()
    reports = run.reports()
    assert [sorted(report.clients) for report in reports] == [[], ["a", "b", "c"], ["a", "b", "c"]]
    assert all(peer.acknowledged.count("") >= 2 for peer in run.peers.values())


def test_28_a_round_ends_at_its_deadline_without_the_slow_site_which_is_told(tmp_path: Path) -> None:
    gate = threading.Event()
    run = Run(tmp_path, {"a": honest, "b": honest, "slow": after(gate)}, deadline=0.5, rounds=1).start()
    report = run.reports()[-1]
    gate.set()
    assert sorted(report.clients) == ["a", "b"]
    assert report.refused == {"slow": "late"}
    assert len(run.peers["slow"].cancelled) == 1


def spent_after(num_trainings: int) -> Behaviour:
    """Train so many times, and then answer that the privacy budget is spent."""
    times: list[None] = []

    def behave(peer: Peer, request: session_pb2.Request) -> Receipt | None:
        times.extend([None] * request.HasField("train"))
        return Failure("privacy_budget") if len(times) > num_trainings else honest(peer, request)

    return behave


def test_sites_without_privacy_budget_are_done_without_and_the_run_ends_with_the_last(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": spent_after(1), "b": spent_after(3)}, rounds=9, quorum=1.0).start()
    reports = run.reports()
    assert [sorted(report.clients) for report in reports] == [[], ["a", "b"], ["b"], ["b"], []]
    assert [report.cohort for report in reports[1:]] == [("a", "b"), ("a", "b"), ("b",), ("b",)]
    assert reports[2].refused == {"a": "privacy_budget"}
    assert [report.is_out_of_budget for report in reports] == [False] * 4 + [True]
    assert reports[-1].adapter_sha256 == reports[-2].adapter_sha256
    told = [line for event in run.events if isinstance(event, Noted) for line in event.lines]
    assert told[:2] == [f"{name} has spent its privacy budget, and trains no more in this run" for name in "ab"]
    assert not [event for event in run.events if isinstance(event, Waiting) and "quorum" in event.what]


def test_in_place_of_a_site_without_privacy_budget_another_is_drawn(tmp_path: Path) -> None:
    behaviours = {"a": spent_after(0), "b": spent_after(0), "c": honest}
    reports = Run(tmp_path, behaviours, rounds=2, cohort=1).start().reports()
    assert [sorted(report.clients) for report in reports] == [[], ["c"], ["c"]]


def test_a_late_update_counts_in_the_next_round_with_half_its_weight(tmp_path: Path) -> None:
    gate = threading.Event()
    gates = {"deadline": 0.5, "late": "next_round", "rounds": 3}
    run = Run(tmp_path, {"a": honest, "b": honest, "slow": after(gate)}, **gates)
    held = after(gate)

    def only_the_first(peer: Peer, request: object) -> object:
        return held(peer, request)  # type: ignore[arg-type]

    run.peers["slow"].behaviour = only_the_first  # type: ignore[assignment]
    run.start()
    while not (run.folder.path / "rounds" / "0001" / "report.json").exists():
        time.sleep(0.01)
    gate.set()
    reports = run.reports()
    assert reports[1].refused == {"slow": "late"}
    ages = {report.round: report.clients["slow"].age for report in reports if "slow" in report.clients}
    assert 1 in ages.values(), [sorted(report.clients) for report in reports]


def test_over_selection_takes_the_first_and_releases_the_others(tmp_path: Path) -> None:
    gate = threading.Event()
    behaviours = {"a": honest, "b": honest, "c": after(gate), "d": after(gate)}
    run = Run(tmp_path, behaviours, cohort=2, oversample=2.0, rounds=1).start()
    report = run.reports()[-1]
    gate.set()
    assert sorted(report.clients) == ["a", "b"]
    assert report.refused == {"c": "not_needed", "d": "not_needed"}


def test_a_site_that_stays_away_is_done_without_after_the_patience(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": honest, "b": honest, "gone": silent}, patience=0.5, rounds=1)
    run.peers["gone"].behaviour = lambda peer, request: peer.disconnect() if request.HasField("train") else None
    run.start()
    report = run.reports()[-1]
    assert sorted(report.clients) == ["a", "b"]
    assert report.refused == {"gone": "away"}


def test_a_site_that_comes_back_in_time_gets_its_request_again(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": honest, "b": honest}, rounds=1)
    gone = threading.Event()

    def leave_once(peer: Peer, request: object) -> object:
        if request.HasField("train") and not gone.is_set():  # type: ignore[attr-defined]
            gone.set()
            peer.disconnect()
            peer.connect()
            return None
        return honest(peer, request)  # type: ignore[arg-type]

    run.peers["b"].behaviour = leave_once  # type: ignore[assignment]
    report = run.start().reports()[-1]
    assert sorted(report.clients) == ["a", "b"]
    delivered = [request for request in run.peers["b"].received if request.HasField("train")]
    assert len(delivered) == 2
    assert delivered[0].request_id == delivered[1].request_id


def test_29_a_round_below_its_quorum_is_repeated_and_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": honest, "b": failing("out_of_memory", 1)}, quorum=1.0, rounds=1).start()
    report = run.reports()[-1]
    assert sorted(report.clients) == ["a", "b"]
    waiting = [event.what for event in run.events if isinstance(event, Waiting)]
    assert any("1 of the 2 updates of its quorum" in what and "out_of_memory" in what for what in waiting)
    asked_a = [request for request in run.peers["a"].received if request.HasField("train")]
    assert len(asked_a) == 1, "what was accepted is not asked for again"


def test_what_a_run_waits_for_is_said_at_each_repetition_also_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(f"fedlora.server.rounds.collect.{name}", 0.1)
    run = Run(tmp_path, {"a": honest, "b": failing("out_of_memory", 3)}, quorum=1.0, rounds=1).start()
    run.reports()
    said = [event.what for event in run.events if isinstance(event, Waiting)]
    waits = [what for what in said if what.startswith("round 1 has")]
    assert waits == [waits[0]] * 3
    assert said.count("") >= 3, "and each time that it goes on"


def test_10_a_round_without_any_accepted_update_is_repeated(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": failing("internal", 1), "b": failing("internal", 1)}, rounds=1).start()
    assert sorted(run.reports()[-1].clients) == ["a", "b"]


def test_a_run_waits_for_its_sites_and_says_who_is_there(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": honest}, sites=2, rounds=1).start()
    run.wait_for(Waiting)
    assert "1 of 2 sites are ready (a)" in [event.what for event in run.events if isinstance(event, Waiting)][-1]
    run.peers["b"] = Peer(run.grid, run.exchange, "b", honest)
    assert sorted(run.reports()[-1].clients) == ["a", "b"]


def test_a_site_that_joins_later_takes_part_from_the_next_round(tmp_path: Path) -> None:
    gate = threading.Event()
    run = Run(tmp_path, {"a": after(gate), "b": honest}).start()
    while not any(isinstance(event, UpdateArrived) for event in run.events):
        time.sleep(0.01)
    run.peers["c"] = Peer(run.grid, run.exchange, "c", honest)
    gate.set()
    reports = run.reports()
    assert [sorted(report.clients) for report in reports[1:]] == [["a", "b"], ["a", "b", "c"]]


def test_12_a_site_with_another_base_model_is_turned_away_and_the_run_goes_on(tmp_path: Path) -> None:
    import dataclasses

    from peers import description

    gate = threading.Event()
    run = Run(tmp_path, {"a": after(gate), "b": honest}, rounds=1).start()
    while not any(isinstance(event, UpdateArrived) for event in run.events):
        time.sleep(0.01)
    other = Peer(run.grid, run.exchange, "other", honest)
    run.grid.ready("other", dataclasses.replace(description("other"), base_model_fingerprint="sha256:1"))
    gate.set()
    assert sorted(run.reports()[-1].clients) == ["a", "b"]
    assert not [request for request in other.received if request.HasField("train")]


def test_37_a_run_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    gate = threading.Event()
    run = Run(tmp_path, {"a": honest, "b": after(gate)}, rounds=1).start()
    while not any(isinstance(event, UpdateArrived) for event in run.events):
        time.sleep(0.01)
    run.grid.stop(is_finished=False)
    with pytest.raises(RunStopped):
        run.reports()
    gate.set()
    again = Run(tmp_path, {"a": honest, "b": honest}, rounds=1).start()
    assert sorted(again.reports()[-1].clients) == ["a", "b"]
    assert not [request for request in again.peers["a"].received if request.HasField("train")]


def test_a_site_that_pauses_is_not_asked(tmp_path: Path) -> None:
    run = Run(tmp_path, {"a": honest, "b": honest, "c": honest}, rounds=1, sites=2)
    run.grid.not_ready("c", "paused")
    report = run.start().reports()[-1]
    assert sorted(report.clients) == ["a", "b"]
