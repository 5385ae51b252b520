"""What processes write to their standard output and error: lines in the log, bounded, and the last of them at hand."""

import logging
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from fedlora.client.worker.output import Lines, WorkerOutput
from fedlora.client.worker.seat import WorkerSeat
from fedlora.common.messages import WORKER_DIED, Failure, TrainReceipt, TrainRequest

LOGGER = "fedlora.client.worker.output"


def lines_of(*chunks: bytes) -> list[str]:
    lines = Lines()
    return [*(line for chunk in chunks for line in lines.of(chunk)), *lines.rest()]


def ask(seat: WorkerSeat, order: str, folder: Path) -> object:
    (folder / "order").write_text(order)
    return seat.ask(seat.message(TrainRequest("run", 1, 0, 0, 10, 0, b"")), TrainReceipt)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def pipe() -> tuple[Connection, int]:
    """Return a read end, and a descriptor that is its write end alone."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    with theirs:
        return ours, os.dup(theirs.fileno())


def test_lines_are_cut_where_they_end_in_whatever_pieces_they_come() -> None:
    text = "eins\nzw\u00f6lf \u2713\n\n  tail".encode()
    assert lines_of(*(text[place : place + 1] for place in range(len(text)))) == ["eins", "zw\u00f6lf \u2713", "  tail"]


def test_what_would_move_the_cursor_is_left_out() -> None:
    assert lines_of(b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2Aand\x07 on\r\n") == ["red and on"]


def test_of_a_progress_bar_the_last_state_counts() -> None:
    assert lines_of(b"\r 10 %", b"\r 50 %\r", b"100 %\ndone") == ["100 %", "done"]


def test_a_line_without_end_is_kept_short_and_what_is_cut_is_said() -> None:
    (line,) = lines_of(*[b"x" * 10_000] * 100)
    assert line == f"{'x' * 500} ... (999500 more characters)"


def test_bytes_that_are_no_text_do_not_stop_the_reading() -> None:
    assert lines_of(b"\xff\xfe\n", b"after") == ["\ufffd\ufffd", "after"]


def test_who_writes_on_and_on_is_read_on_and_on_and_shown_a_while(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = pipe()
    output = WorkerOutput("worker", ours)
    for number in range(20_000):
        os.write(theirs, b"line %d\n" % number)
    os.close(theirs)
    output.finish()
    lines = said(caplog)
    assert 200 <= len(lines) < 1000
    left_out = [int(line.split("(")[1].split()[0]) for line in lines if "written too fast" in line]
    assert sum(left_out) + len(lines) - len(left_out) == 20_000
    assert output.last_words() == "line 19998 / line 19999"


def test_of_a_traceback_the_error_is_the_last_word() -> None:
    ours, theirs = pipe()
    output = WorkerOutput("worker", ours)
    os.write(theirs, b"Traceback:\n    raise ValueError(1)\nValueError: 1\n")
    os.close(theirs)
    output.finish()
    assert output.last_words() == "ValueError: 1"


def test_what_a_worker_prints_and_its_libraries_write_is_logged_and_nothing_reaches_the_terminal(
    seat: WorkerSeat, folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(ask(seat, "speak", folder), TrainReceipt)
    seat.close()
    deadline = time.monotonic() + 30
    while len(said(caplog)) < 4:
        assert time.monotonic() < deadline, said(caplog)
        time.sleep(0.01)
    expected = ["printed \u2713", "on standard error", "by a library", "and another"]
    assert sorted(said(caplog)) == sorted(f"worker: {line}" for line in expected)
    assert {record.levelno for record in caplog.records if record.name == LOGGER} == {logging.WARNING}
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_dies_is_said_to_with_its_last_words(seat: WorkerSeat, folder: Path) -> None:
    found = ask(seat, "speak, then die", folder)
    assert found == Failure(
        WORKER_DIED, "the worker process died (exit code 4); it said last: by a library / and another"
    )


def test_a_worker_that_writes_more_than_a_pipe_holds_goes_on(seat: WorkerSeat, folder: Path) -> None:
    assert isinstance(ask(seat, "shout", folder), TrainReceipt)
