"""A run that is killed, wherever, goes on to the same adapter as one that is not."""

import hashlib
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interruption import interrupted

from fedlora.simulation import simulate

RunFile = Callable[..., Path]

TIMES = ("seconds",)


@pytest.fixture
def rounds() -> int:
    return 2


@pytest.fixture
def small_run(run_file: RunFile, rounds: int) -> Path:
    return run_file("train.steps=2", "partition.by=iid", "partition.num_clients=2", f"federation.rounds={rounds}")


@pytest.fixture
def uninterrupted(small_run: Path, tmp_path: Path) -> Path:
    return simulate(small_run, out=tmp_path / "uninterrupted", num_workers=1).folder


def published(folder: Path) -> tuple[str, list[object]]:
    """Return the adapter's sha256 and the reports without what a clock says."""
    reports = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return (
        hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest(),
        [without_times(report) for report in reports],
    )


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


# Each death costs the seconds of a new start: 14 kinds of files, 23 files in one round, 38 in two.
@pytest.mark.parametrize(
    ("rounds", "how"), [(1, "--at-each-kind"), pytest.param(2, "--at-each-file", marks=pytest.mark.slow)]
)
def test_a_run_killed_at_every_file_it_writes_gives_the_same_adapter(
    small_run: Path, uninterrupted: Path, tmp_path: Path, how: str
) -> None:
    out, journal = tmp_path / "killed", tmp_path / "journal"
    num_deaths = 0
    while (code := interrupted(small_run, out, how, str(journal))) != 0:
        assert code == -signal.SIGKILL
        num_deaths += 1
        assert num_deaths < 60
    deaths = journal.read_text().splitlines()
    assert len(deaths) == num_deaths
    for expected in (
        "run.toml",
        "manifest.json",
        "plan.json",
        "update.safetensors" if how == "--at-each-kind" else "updates/",
        "adapter_model.safetensors",
        "report.json",
        "half a line of rounds.jsonl",
        "report.html",
        "best.json",
    ):
        assert any(expected in death for death in deaths), expected
    assert published(out) == published(uninterrupted)
    assert not list(out.rglob("*.tmp"))


def test_a_run_killed_at_random_instants_gives_the_same_adapter(
    small_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    out, draw = tmp_path / "killed", random.Random(0)
    began = time.monotonic()
    for _ in range(3):
        if interrupted(small_run, out, "--after-seconds", str(draw.uniform(0.2, 2))) == 0:
            break
    assert time.monotonic() - began < 120
    assert published(
        simulate(small_run, out=out, num_workers=2, resume=(out / "run.toml").is_file()).folder
    ) == published(uninterrupted)
