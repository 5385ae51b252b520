"""One run, whatever carries it: the same adapter, bit for bit."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from ended_runs import adapter_sha256

from fedlora.simulation import SimulationResult, simulate

RunFile = Callable[..., Path]


@pytest.fixture
def with_two_workers(finished_run: SimulationResult) -> str:
    return adapter_sha256(finished_run.folder)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_any_number_of_workers_gives_the_same_adapter(
    run_file: RunFile, tmp_path: Path, with_two_workers: str, num_workers: int
) -> None:
    simulate(run_file(), out=tmp_path / "other", num_workers=num_workers)
    assert adapter_sha256(tmp_path / "other") == with_two_workers


# Each actor of Ray's imports torch, transformers and PEFT anew.
@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_flowers_engine_on_ray_gives_the_same_adapter(
    run_file: RunFile, tmp_path: Path, with_two_workers: str, num_workers: int
) -> None:
    pytest.importorskip("ray")
    level = logging.getLogger("flwr").level
    simulate(run_file(), out=tmp_path / "ray", engine="ray", num_workers=num_workers)
    assert adapter_sha256(tmp_path / "ray") == with_two_workers
    assert logging.getLogger("flwr").level == level, "Flower stays muted in this process"


def test_another_seed_gives_another_adapter(run_file: RunFile, tmp_path: Path, with_two_workers: str) -> None:
    simulate(run_file("run.seed=1"), out=tmp_path / "seed", num_workers=2)
    assert adapter_sha256(tmp_path / "seed") != with_two_workers
