"""A site on the bench, without a network, and the seat of a worker."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

if TYPE_CHECKING:
    from site_bench import Bench, StartBench

    from fedlora.client.worker.seat import WorkerSeat


@pytest.fixture
def identity() -> Iterator[None]:
    """Give back what Flower knows of this process, which a seat changes."""
    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    yield
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder in which the app of `seat_apps` finds its orders, and notes what it does."""
    (tmp_path / "app").mkdir()
    return tmp_path / "app"


@pytest.fixture
def seat(folder: Path, identity: None) -> "Iterator[WorkerSeat]":  # noqa: ARG001 (it is given back at the end)
    """Return the seat of a worker with the app of `seat_apps`."""
    import seat_apps

    from fedlora.client.worker.seat import WorkerSeat

    seat = WorkerSeat(seat_apps.make_app, {seat_apps.FOLDER: str(folder)})
    yield seat
    seat.close()


@pytest.fixture
def start_bench(tmp_path: Path, identity: None) -> "Iterator[StartBench]":  # noqa: ARG001
    """Return a function that puts a site with these sections of its site file on the bench."""
    from site_bench import Bench

    benches: list[Bench] = []

    def start(**sections: Any) -> Bench:
        benches.append(Bench(tmp_path, **sections))
        return benches[-1]

    yield start
    for bench in benches:
        bench.site.close()


@pytest.fixture
def bench(start_bench: "StartBench") -> "Bench":
    """Return a site that has said that it is ready."""
    bench = start_bench()
    bench.connect()
    assert bench.readiness().HasField("description")
    return bench
