"""What workers write while a run is shown: above the live view, which stays whole, in a terminal of any width."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEQUENCE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]")


def screen(written: str, *, width: int) -> list[str]:
    """Return the lines that a terminal of this width shows after what was written to it, those scrolled away first."""
    lines, row, column = [""], 0, 0
    for found in SEQUENCE.finditer(written):
        numbers, command = found.groups()
        if command == "A":
            row = max(0, row - int(numbers or 1))
        elif command == "K":
            lines[row] = "" if numbers == "2" else lines[row][:column]
        elif found.group() == "\r":
            column = 0
        elif found.group() == "\n":
            row += 1
        elif command is None:
            if column == width:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = f"{lines[row]:<{column}}"[:column] + found.group() + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


def run_in_terminal(*arguments: str, width: int, err: Path | None = None) -> list[str]:
    """Return the screen after loud_run.py in a pseudo-terminal; its standard error goes to a file if one is given."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 1 << 16):
                chunks.append(chunk)
        except OSError:  # Linux's end of a terminal
            pass

    with open(os.devnull if err is None else err, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "loud_run.py"), *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs if err is None else file,
            env=os.environ | {"TERM": "xterm"},
        )
    os.close(theirs)
    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(120) == 0, b"".join(chunks).decode()
    reader.join(10)
    os.close(ours)
    return screen(b"".join(chunks).decode(), width=width)


@pytest.mark.parametrize("width", [60, pytest.param(80, marks=pytest.mark.slow)])
def test_the_view_stays_whole_and_every_word_is_above_it(width: int) -> None:
    lines = run_in_terminal("--parent", width=width)
    assert max(map(len, lines)) <= width
    above, view = lines[: lines.index(next(line for line in lines if line.startswith("\u256d")))], lines
    assert sum(line.startswith("\u256d") for line in view) == sum(line.startswith("\u2570") for line in view) == 1
    text = " ".join(" ".join(above).split())
    for number in range(12):
        assert f"library {number:02}" in text
        assert f"end {number:02}" in text
    assert "the command's own library" in text
    assert lines[len(above) :][-1] == "" or lines[-1].startswith("\u2570")


def test_with_standard_error_in_a_file_nothing_is_lost(tmp_path: Path) -> None:
    lines = run_in_terminal(width=80, err=tmp_path / "err")
    text = " ".join(lines) + (tmp_path / "err").read_text()
    assert all(f"library {number:02}" in text for number in range(12))
    assert sum(line.startswith("\u256d") for line in lines) == 1
