"""What a worker writes to its standard output and error: lines in its parent's log, never on the terminal itself.

A live view would be torn by it, and what a worker says last before it dies is what one needs to know. The pipe is
read at once whatever happens to the lines, so that no worker ever waits for a reader.
"""

import codecs
import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 16
_LONGEST_LINE = 500
# What is shown of a worker that writes and writes: so many lines at once, and so many more a second.
_BURST_LINES = 200
_LINES_PER_SECOND = 10.0
_END_SECONDS = 2.0
_SOON_SECONDS = 0.2
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[@-Z\\-_])")


def write_into(descriptor: int) -> None:
    """Let all that this process and its libraries write to standard output and error go to a file descriptor."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if (before := getattr(sys, name)) is not None:
            before.flush()
        os.dup2(descriptor, number)
        # The reader expects UTF-8; and of a process that is killed, only what it has written is ever read.
        stream = open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)


class WorkerOutput:
    """The read end of the pipe that is a process's standard output and error.

    Each line becomes a warning in the log. What is not shown, because it comes too fast or is too long, is counted
    there.

    Attributes:
        num_lines: read so far.
    """

    def __init__(self, name: str, pipe: Connection) -> None:
        """Begin to read from `pipe`, in a thread of its own; `name` says in the log whose words these are."""
        self._name = name
        self._pipe = pipe
        self.num_lines = 0
        self._last: deque[str] = deque(maxlen=2)
        self._lines = Lines()
        self._budget = float(_BURST_LINES)
        self._counted = time.monotonic()
        self._num_left_out = 0
        self._thread = threading.Thread(target=self._read, daemon=True, name=f"output of {name}")
        self._thread.start()

    def finish(self) -> None:
        """Wait until all has been read that a process wrote which is gone."""
        # A child of the worker may hold its end of the pipe for longer; the thread then reads on by itself.
        self._thread.join(_END_SECONDS)

    def last_words(self) -> str:
        """Return the last line, or the last two where they belong together; empty where nothing has been said."""
        # Above the last line of a Python traceback is a line of its source.
        words = [line for line in self._last if line is self._last[-1] or not line.startswith(" ")]
        return " / ".join(map(str.strip, words))

    def last_words_since(self, num_lines: int) -> str:
        """Return the last words of a process that lives on, if it has said more than `num_lines` by now or soon."""
        deadline = time.monotonic() + _SOON_SECONDS
        while self.num_lines <= num_lines:
            if time.monotonic() > deadline:
                return ""
            time.sleep(0.01)
        return self.last_words()

    def _read(self) -> None:
        with self._pipe:
            while chunk := self._next_chunk():
                for line in self._lines.of(chunk):
                    self._tell(line)
        for line in self._lines.rest():
            self._tell(line)
        self._tell_left_out()

    def _next_chunk(self) -> bytes:
        try:
            return os.read(self._pipe.fileno(), _CHUNK_BYTES)
        except OSError:
            return b""

    def _tell(self, line: str) -> None:
        self._last.append(line)
        self.num_lines += 1
        now = time.monotonic()
        self._budget = min(_BURST_LINES, self._budget + (now - self._counted) * _LINES_PER_SECOND)
        self._counted = now
        if self._budget < 1:
            self._num_left_out += 1
            return
        self._budget -= 1
        self._tell_left_out()
        logger.warning("%s: %s", self._name, line)

    def _tell_left_out(self) -> None:
        if self._num_left_out:
            logger.warning("%s: (%d more lines, written too fast to be shown)", self._name, self._num_left_out)
            self._num_left_out = 0


class Lines:
    """Cuts what a process writes into lines that a terminal and a log can take, in memory that stays small."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = ""
        self._num_cut = 0

    def of(self, chunk: bytes) -> Iterator[str]:
        """Yield the lines that `chunk` ends; empty ones are passed over."""
        *ended, begun = self._decoder.decode(chunk).split("\n")
        for text in ended:
            self._add(text)
            yield from self._line()
        self._add(begun)

    def rest(self) -> Iterator[str]:
        """Yield the line that was begun and never ended."""
        self._add(self._decoder.decode(b"", final=True))
        yield from self._line()

    def _add(self, text: str) -> None:
        # A progress bar writes over itself: its last state counts.
        text = self._begun + text
        _, over, self._begun = text.rstrip("\r").rpartition("\r")
        if over:
            self._num_cut = 0
        # Twice, because what cannot be shown is still in it.
        num_over = len(self._begun) - 2 * _LONGEST_LINE
        if num_over > 0:
            self._begun, self._num_cut = self._begun[: 2 * _LONGEST_LINE], self._num_cut + num_over
        if text.endswith("\r"):
            self._begun += "\r"

    def _line(self) -> Iterator[str]:
        text = _ESCAPES.sub("", self._begun).expandtabs(4)
        text = "".join(character for character in text if character.isprintable()).rstrip()
        num_cut = self._num_cut + max(0, len(text) - _LONGEST_LINE)
        self._begun, self._num_cut = "", 0
        if text:
            yield text if not num_cut else f"{text[:_LONGEST_LINE]} ... ({num_cut} more characters)"
