"""Whether the run's disk has room: looked at from time to time, and said when it becomes too full or has room again."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fedlora.server.record.events import DiskSpace, Listener

logger = logging.getLogger(__name__)

# Below this nothing is uploaded: the journal, records and certificates must still be written.
LEAST_FREE_BYTES = 64 << 20
_SAY_AGAIN_SECONDS = 600.0


class DiskWatch:
    """Looks at the disk of a folder; safe to use from any thread."""

    def __init__(
        self,
        folder: Path,
        listener: Listener,
        *,
        needed_bytes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`needed_bytes` says what the next round takes, as far as that is known."""
        self._folder = folder
        self._listener = listener
        self._needed_bytes = needed_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._is_short = False
        self._said = 0.0

    def look(self) -> DiskSpace:
        """Return how much is free and needed; it is said, once, when that becomes too little, and when it is over."""
        with self._lock:
            found = DiskSpace(str(self._folder), shutil.disk_usage(_existing(self._folder)).free, self._needed_bytes())
            if found.is_short:
                self._say_short(found)
            if found.is_short == self._is_short:
                return found
            self._is_short = found.is_short
            if not found.is_short:
                logger.warning("%s: there is room on the disk again, %s", found.folder, _megabytes(found.free_bytes))
        self._listener(found)
        return found

    def _say_short(self, found: DiskSpace) -> None:
        if self._is_short and self._clock() - self._said < _SAY_AGAIN_SECONDS:
            return
        self._said = self._clock()
        free, needed = _megabytes(found.free_bytes), _megabytes(found.needed_bytes)
        logger.error(
            "%s: the disk is too full: %s free, %s needed; free some space, and the run goes on by itself",
            found.folder, free, needed,
        )  # fmt: skip


def why_not_writable(folder: Path) -> str:
    """Return what keeps a file from being written to a folder, nothing if nothing does. It tries it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return f"the run's folder cannot be written ({error.strerror})"
    return ""


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
