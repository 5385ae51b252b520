"""report.html while a run goes on: there from the first round on, beside the rounds, and in a part of the time."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from report_pages import finished, start

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.server.record.events import RoundEnded, RunStarted
from fedlora.server.record.round_report import RoundReport
from fedlora.server.running_report import RunningReport
from fedlora.server.whole_run import Rounds, Run, whole_run

DEADLINE_SECONDS = 60.0


class Written:
    """Takes what a report is written over, and holds it up."""

    def __init__(self, *errors: Exception) -> None:
        self.rounds: list[int] = []
        self.errors = list(errors)
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, reports: Sequence[RoundReport]) -> None:
        self.gate.wait(DEADLINE_SECONDS)
        self.rounds.append(reports[-1].round)
        if self.errors:
            raise self.errors.pop(0)

    def wait_for(self, number: int) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while number not in self.rounds:
            assert time.monotonic() < deadline, self.rounds
            time.sleep(0.005)


@contextmanager
def running(written: Written, *, least_seconds: float = 0.0) -> Iterator[RunningReport]:
    with RunningReport(written, least_seconds=least_seconds) as report:
        report.heard(RunStarted((), 9, 0, ()))
        yield report


def test_a_report_is_there_from_the_first_round_on_and_follows_the_run() -> None:
    written = Written()
    with running(written) as report:
        report.heard(RoundEnded(start()))
        written.wait_for(0)
        report.heard(RoundEnded(finished(1)))
        written.wait_for(1)


def test_a_run_that_goes_on_has_all_its_rounds_in_it() -> None:
    lengths: list[int] = []
    with RunningReport(lambda reports: lengths.append(len(reports)), least_seconds=0.0) as report:
        report.heard(RunStarted((), 9, 2, (start(), finished(1))))
        report.heard(RoundEnded(finished(2)))
        while not lengths:
            time.sleep(0.005)
    assert lengths == [3]


def test_no_round_waits_for_a_report_and_only_the_newest_is_written() -> None:
    written = Written()
    written.gate.clear()
    with running(written) as report:
        for number in range(1, 6):
            report.heard(RoundEnded(finished(number)))
        assert written.rounds == []
        written.gate.set()
        written.wait_for(5)
    assert len(written.rounds) <= 2


def test_a_short_run_has_its_report_at_its_end_alone() -> None:
    written = Written()
    with running(written, least_seconds=DEADLINE_SECONDS) as report:
        report.heard(RoundEnded(start()))
    assert written.rounds == []


def test_a_report_that_cannot_be_written_ends_no_run(caplog: pytest.LogCaptureFixture) -> None:
    written = Written(StoreError("disk full"), ZeroDivisionError())
    with running(written) as report:
        for number in range(3):
            report.heard(RoundEnded(finished(number) if number else start()))
            written.wait_for(number)
    assert "disk full" in caplog.text
    assert "report.html is not written" in caplog.text


def test_a_run_that_ends_in_an_error_while_a_report_is_written_ends_in_its_error(tmp_path: Path) -> None:
    def engine(rounds: Rounds) -> None:
        rounds.listener(RunStarted((), 9, 0, ()))
        rounds.listener(RoundEnded(start()))
        raise StoreError("the disk is gone")

    run = Run(RunConfig(), tmp_path / "out", num_sites=1, command="")
    with pytest.raises(StoreError, match="the disk is gone"):
        whole_run(run, engine, shown=nullcontext(lambda _event: None))
