"""What a run has taken, over all processes that have worked on it: time, and bytes of rounds that one left undone."""

import itertools
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from peers import LORA, Peer, honest, make_grid
from report_pages import finished, start, text_of

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.server.disk.account import Account, Spent, process_records, seconds_worked
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event, RoundStarted, UpdateArrived
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.server.sites.grpc.grid import RunStopped

CONFIG = RunConfig.model_validate(
    {
        "federation": {"rounds": 2, "sites": 2},
        "data": {"labels": ["a", "b"]},
        "lora": LORA,
        "aggregation": {"method": "fedit"},
    }
)


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def run_until_stopped_at(kind: type[Event] | None, folder: Path) -> None:
    """Run over two sites, each of whose downloads and uploads counts 100 and 10 bytes, until an event of round 2."""

    def counting(peer: Peer, request: object) -> object:
        grid.count(down=100, up=10)
        return honest(peer, request)  # type: ignore[arg-type]

    def stop(event: Event) -> None:
        if kind is not None and isinstance(event, kind) and event.round == 2:  # type: ignore[attr-defined]
            grid.stop(is_finished=False)

    grid, exchange = make_grid(folder, lambda _event: None)
    for name in ("a", "b"):
        Peer(grid, exchange, name, counting)  # type: ignore[arg-type]
    with Account(folder) as account:
        run = FederatedRun(
            CONFIG, FedIT(), RunFolder(folder), num_sites=2, command="", listener=stop, account=account
        )  # fmt: skip
        run.start(LastingSites(grid))


def test_bytes_and_seconds_of_a_round_are_of_all_processes_that_worked_on_it(tmp_path: Path) -> None:
    for kind in (UpdateArrived, RoundStarted):
        with pytest.raises(RunStopped):
            run_until_stopped_at(kind, tmp_path)
    before = process_records(tmp_path)
    run_until_stopped_at(None, tmp_path)
    records = process_records(tmp_path)
    assert [record.round for record in records] == [2, 2, 2]
    assert records[:2] == before
    lost = before[0].spent + before[1].spent
    assert lost.bytes_up >= 20
    last = (checkpoint := RunFolder(tmp_path).latest()) and checkpoint.reports[-1]
    assert last is not None
    assert last.seconds["interrupted"] == pytest.approx(lost.seconds)
    # Of its own the last process has at least the two evaluations.
    assert last.bytes_up >= lost.bytes_up + 20
    assert last.bytes_down == 10 * last.bytes_up
    assert seconds_worked(tmp_path) == pytest.approx(sum(record.seconds for record in records))


def test_a_run_that_has_begun_nothing_has_no_account(tmp_path: Path) -> None:
    with Account(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "manifest.json").touch()
    with Account(tmp_path):
        pass
    assert [record.round for record in process_records(tmp_path)] == [None]


def test_an_account_that_was_damaged_counts_from_here_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "manifest.json").touch()
    (tmp_path / "processes.json").write_text("[{")
    with Account(tmp_path) as account:
        assert account.lost(1) == Spent()
    assert "is damaged, and the time of earlier processes is not counted" in caplog.text
    assert len(process_records(tmp_path)) == 1


def test_what_a_killed_process_has_spent_is_on_disk_before_its_end(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    asked, moved = threading.Event(), itertools.count(1)

    def counted() -> tuple[int, int]:
        asked.set()
        return next(moved), 0

    with Account(tmp_path, seconds_between=0.01) as account:
        account.begin(3, counted)
        assert asked.wait(30)
        while not (records := process_records(tmp_path)) or records[-1].round != 3:
            pass
    assert json.loads((tmp_path / "processes.json").read_text())[-1]["spent"]["bytes_down"] > 0


def test_the_report_has_one_total_time_and_one_of_bytes() -> None:
    begun = start()
    undone = finished(1, seconds={"training": 100.0, "interrupted": 50.0, "evaluation": 45.0})
    text = text_of(begun, undone, worked=400.0)
    assert text.count("6 min 40 s") == 2
    assert "The run took 6 min 40 s: training 1 min 40 s (25 %), " in text
    assert "outside of rounds" in text
    assert "Interrupted is what processes had spent" in text
