"""The runs that are looked at: their readers, and the parts of their pages, each made once for all who look."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedlora.dashboard.audit_page import AuditReader
from fedlora.dashboard.found_runs import FoundRuns, find_runs
from fedlora.dashboard.known_run import RunReader
from fedlora.dashboard.plain_folder import PlainFolder

# Reports of so many runs are held in memory at a time.
_MOST_READERS = 8
# Between two makings of a part, or looks at the disk, there is so many times what the last one took.
_TIMES_ITS_COST = 20.0
_SECONDS_BETWEEN_LOOKS = 0.5

Seen = TypeVar("Seen")
MakePart = Callable[[RunReader, str, str], str]
"""Returns of the run at a place a part of its page as HTML."""


class _Look(Generic[Seen]):
    """What was seen last, and is seen anew after a while. Not for several threads at a time."""

    def __init__(self, look: Callable[[], Seen]) -> None:
        self._look = look
        self._seen, self._until = self._looked()

    def seen(self) -> Seen:
        if time.monotonic() >= self._until:
            self._seen, self._until = self._looked()
        return self._seen

    def _looked(self) -> tuple[Seen, float]:
        """Return what is seen, and until when that counts."""
        began = time.monotonic()
        seen = self._look()
        ended = time.monotonic()
        return seen, ended + max(_SECONDS_BETWEEN_LOOKS, _TIMES_ITS_COST * (ended - began))


@dataclass(frozen=True)
class _Made:
    """A part of a page: of which state of the files it is, and until when it is shown although they have changed."""

    mark: str
    html: str
    until: float


class WatchedRun:
    """A run that is looked at. For several threads.

    Attributes:
        folder: the run's.
        audit: its log.
    """

    def __init__(self, folder: PlainFolder, place: str, make: MakePart) -> None:
        self.folder = folder
        self._place = place
        self.audit = AuditReader(folder)
        self._reader = RunReader(folder)
        self._make = make
        self._lock = threading.Lock()
        self._marks = _Look(self._reader.marks)
        self._made: dict[str, _Made] = {}

    def marks(self) -> Mapping[str, str]:
        """Return for each part of the page its state; that of a part that was dear to make changes more seldom."""
        with self._lock:
            return {part: self._mark(part, mark) for part, mark in self._marks.seen().items()}

    def part(self, part: str) -> tuple[str, str]:
        """Return of which state a part of the page is, and the part as HTML."""
        with self._lock:
            mark = self._mark(part, self._marks.seen()[part])
            known = self._made.get(part)
            if known is None or known.mark != mark:
                began = time.monotonic()
                html = self._make(self._reader, self._place, part)
                ended = time.monotonic()
                known = self._made[part] = _Made(mark, html, ended + _TIMES_ITS_COST * (ended - began))
            return known.mark, known.html

    def _mark(self, part: str, mark: str) -> str:
        known = self._made.get(part)
        return mark if known is None or time.monotonic() >= known.until else known.mark


class WatchedRuns:
    """The runs in a folder, as pages ask for them. For several threads."""

    def __init__(self, folder: PlainFolder, make: MakePart) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._found = _Look(lambda: find_runs(folder))
        self._watched: OrderedDict[str, WatchedRun] = OrderedDict()

    def found(self) -> FoundRuns:
        """Return what lies in the folder."""
        with self._lock:
            return self._found.seen()

    def run(self, place: str) -> WatchedRun | None:
        """Return the run at a place, None where there is none."""
        with self._lock:
            folder = self._found.seen().runs.get(place)
            if folder is None:
                return None
            watched = self._watched.get(place)
            if watched is None:
                watched = self._watched[place] = WatchedRun(folder, place, self._make)
            self._watched.move_to_end(place)
            if len(self._watched) > _MOST_READERS:
                self._watched.popitem(last=False)
            return watched
