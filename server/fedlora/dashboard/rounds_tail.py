"""The rounds of a run as they are appended to `rounds.jsonl`: what was read is not read again."""

import os
from contextlib import suppress

from fedlora.common.run_folder import ROUNDS_FILE
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.server.record.round_report import CODEC, RoundReport

_LONGEST_LINE = 16 << 20
_MOST_BYTES = 512 << 20
_END_BYTES = 4 << 20
# By so many bytes before where it stopped a reader sees that the file is still the one that it has read.
_KNOWN_BYTES = 4096


def last_round(folder: PlainFolder) -> RoundReport | None:
    """Return the newest round in a run's file, from its end alone; None where there is none, or it is very long."""
    try:
        with folder.open(ROUNDS_FILE) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _END_BYTES))
            lines = file.read(_END_BYTES).split(b"\n")[:-1]
    except OSError:
        return None
    for line in reversed(lines):
        with suppress(ValueError):
            return CODEC.load(line)
    return None


class RoundsTail:
    """Follows the file of one run. Not for several threads at a time.

    A process that goes on after a kill may write the file anew, or do a round again: of two lines on one round the
    later counts, and what was behind the earlier is gone.

    Attributes:
        reports: of the rounds that are over, in their order.
        num_damaged: lines that are no report.
        is_cut: whether the file is larger than is read.
    """

    def __init__(self, folder: PlainFolder) -> None:
        self._folder = folder
        self.reports: list[RoundReport] = []
        self.num_damaged = 0
        self.is_cut = False
        self._inode, self._offset = -1, 0
        self._before = b""
        self._rest, self._is_too_long = bytearray(), False

    def catch_up(self) -> None:
        """Read what has been added; a line that is still being written waits for its end."""
        try:
            with self._folder.open(ROUNDS_FILE) as file:
                known = os.fstat(file.fileno())
                file.seek(self._offset - len(self._before))
                if known.st_ino != self._inode or file.read(len(self._before)) != self._before:
                    self._forget()
                    self._inode = known.st_ino
                    file.seek(0)
                end = min(known.st_size, _MOST_BYTES)
                self.is_cut = known.st_size > _MOST_BYTES
                while self._offset < end and (block := file.read(min(1 << 20, end - self._offset))):
                    self._offset += len(block)
                    self._before = (self._before + block)[-_KNOWN_BYTES:]
                    self._take(block)
        except OSError:
            self._forget()

    def _forget(self) -> None:
        self.reports.clear()
        self.num_damaged, self.is_cut = 0, False
        self._inode, self._offset, self._before = -1, 0, b""
        self._rest.clear()
        self._is_too_long = False

    def _take(self, block: bytes) -> None:
        *lines, rest = block.split(b"\n")
        for line in lines:
            self._add(line)
            self._end_line()
            self._rest.clear()
        self._add(rest)

    def _add(self, part: bytes) -> None:
        self._is_too_long = self._is_too_long or len(self._rest) + len(part) > _LONGEST_LINE
        if self._is_too_long:
            self._rest.clear()
        else:
            self._rest += part

    def _end_line(self) -> None:
        is_too_long, self._is_too_long = self._is_too_long, False
        try:
            report = None if is_too_long else CODEC.load(bytes(self._rest))
        except ValueError:
            report = None
        if report is None:
            self.num_damaged += 1
            return
        while self.reports and self.reports[-1].round >= report.round:
            self.reports.pop()
        self.reports.append(report)
