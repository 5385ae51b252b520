"""A site on the bench, without a network."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

if TYPE_CHECKING:
    from site_bench import Bench, StartBench


@pytest.fixture
def start_bench(tmp_path: Path) -> "Iterator[StartBench]":
    """Return a function that puts a site with these sections of its site file on the bench."""
    from site_bench import Bench

    before = (TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id)
    benches: list[Bench] = []

    def start(**sections: object) -> Bench:
        benches.append(Bench(tmp_path, **sections))
        return benches[-1]

    yield start
    for bench in benches:
        bench.site.close()
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@pytest.fixture
def bench(start_bench: "StartBench") -> "Bench":
    """Return a site that has said that it is ready."""
    bench = start_bench()
    bench.connect()
    assert bench.readiness().HasField("description")
    return bench
