"""`processes.json` in a run's folder: for how long each process has been at work on the run.

A process that is killed in the middle of a round leaves no report of it: what it had spent on that round stands here.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from pydantic import TypeAdapter

from fedlora.common.errors import StoreError, one_line
from fedlora.common.files import write_file
from fedlora.common.repeatedly import repeatedly
from fedlora.common.run_folder import MANIFEST_FILE, PROCESSES_FILE

logger = logging.getLogger(__name__)

# What a killed process may leave out at most.
_SECONDS_BETWEEN = 5.0

Moved = Callable[[], tuple[int, int]]
"""Returns the adapter bytes down and up of the round at work, as far as somebody counts them."""


@dataclass(frozen=True)
class Spent:
    """Wall time, and adapter bytes where somebody counts them."""

    seconds: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds + other.seconds, self.bytes_down + other.bytes_down, self.bytes_up + other.bytes_up)


@dataclass(frozen=True)
class ProcessRecord:
    """One process: when it began, in UTC, for how long it has worked, and what it has spent on its last round."""

    began: datetime
    seconds: float = 0.0
    round: int | None = None
    spent: Spent = Spent()

    @property
    def last_seen(self) -> datetime:
        """The moment of its last word."""
        return self.began + timedelta(seconds=self.seconds)


_RECORDS = TypeAdapter(list[ProcessRecord])


class Account:
    """Keeps the record of this process, every few seconds and at its end, beside those of the processes before it.

    A run that has no manifest has begun nothing, and no record either.
    """

    def __init__(self, folder: Path, *, seconds_between: float = _SECONDS_BETWEEN) -> None:
        self._folder = folder
        self._earlier = process_records(folder)
        self._own = ProcessRecord(datetime.now(UTC))
        self._clock = time.monotonic()
        self._round_began = self._clock
        self._moved: Moved = lambda: (0, 0)
        self._lock = threading.Lock()
        self._writing = repeatedly(self.write, seconds=seconds_between)

    def __enter__(self) -> "Account":
        self._writing.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writing.__exit__(None, None, None)
        self.write()

    def begin(self, number: int, moved: Moved) -> None:
        """Note the round that this process is at work on from this moment."""
        with self._lock:
            is_first = self._own.round is None
            self._own = replace(self._own, round=number)
            self._moved, self._round_began = moved, time.monotonic()
        if is_first:
            self.write()

    def lost(self, number: int) -> Spent:
        """Return what processes that ended before a round was over had spent on it."""
        return sum((record.spent for record in self._earlier if record.round == number), Spent())

    def write(self) -> None:
        """Write the records as of this moment; on a full disk the run itself says so."""
        with self._lock, suppress(StoreError):
            if not (self._folder / MANIFEST_FILE).exists():
                return
            now = time.monotonic()
            spent = Spent() if self._own.round is None else Spent(now - self._round_began, *self._moved())
            self._own = replace(self._own, seconds=now - self._clock, spent=spent)
            write_file(self._folder / PROCESSES_FILE, _RECORDS.dump_json([*self._earlier, self._own], indent=1) + b"\n")


def process_records(folder: Path) -> list[ProcessRecord]:
    """Return the records of the processes that have worked on the run in a folder; damaged ones are left out."""
    path = folder / PROCESSES_FILE
    try:
        return records_in(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged, and the time of earlier processes is not counted (%s)", path, one_line(error))
        return []


def records_in(raw: bytes) -> list[ProcessRecord]:
    """Return the records in a file's bytes.

    Raises:
        ValueError: they are damaged, or of times that there are not.
    """
    records = _RECORDS.validate_json(raw)
    for record in records:
        try:
            record.last_seen.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(f"a process began at {record.began} and worked for {record.seconds} seconds") from error
        if record.began.tzinfo is None:
            raise ValueError(f"a process began at {record.began}, in nobody knows which zone")
    return records


def seconds_worked(folder: Path) -> float:
    """Return the wall time of all processes that have worked on the run in a folder."""
    return sum(record.seconds for record in process_records(folder))
