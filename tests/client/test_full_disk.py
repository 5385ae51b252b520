"""Case 21, at a site: a disk that is full while an update is written is told by a code, and the site goes on."""

import resource
import sys
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parent))

from site_bench import Bench, adapter, train

START = adapter()


@pytest.fixture
def worker(bench: Bench) -> psutil.Process:
    """Return the process that trains and writes the update."""
    return psutil.Process(int((bench.app / "rehearsals").read_text().split()[0]))


def test_case_21_an_update_that_does_not_fit_is_told_by_a_code_and_the_next_round_is_done(
    bench: Bench, worker: psutil.Process
) -> None:
    before = worker.rlimit(psutil.RLIMIT_FSIZE)
    # A file may not grow beyond this: the kernel says no in the middle of the update, as where the disk is full.
    worker.rlimit(psutil.RLIMIT_FSIZE, (len(START) // 2, before[1]))
    bench.ask("1", train(1), START)
    assert bench.answer().failure.code == "store"
    assert [name for name in bench.results() if name.endswith("answer")] == []
    worker.rlimit(psutil.RLIMIT_FSIZE, before)
    bench.ask("2", train(2), START)
    assert bench.answer().train.status == "ok"
    bench.acknowledge("2")
    assert bench.results() == []


def test_case_21_an_answer_that_does_not_fit_is_told_too_and_the_training_is_not_counted_as_done(
    bench: Bench,
) -> None:
    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    bench.ask("0", train(1), START)
    assert bench.answer().train.status == "ok"
    bench.acknowledge("0", "late")
    fill()
    try:
        bench.ask("1", train(1), START)
        assert bench.answer().failure.code == "store"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    bench.ask("2", train(1), START)
    assert bench.answer().train.status == "ok"
    assert bench.num("trainings") == 3
