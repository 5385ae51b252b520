"""A file that a process holds for as long as it lives: who asks whether it is held needs no process id.

Ids are given to others after a process's end, and mean nothing outside its container; a lock ends with its holder.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedlora.common.errors import StoreError
from fedlora.common.files import unwritable

# Whoever asks holds the lock for a moment as well.
_PATIENCE_SECONDS = 0.5


def hold(file: IO[bytes]) -> None:
    """Hold an open file until it is closed, or the process ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the file at `path` meanwhile, which is made if need be; whoever else holds it is waited for.

    Raises:
        StoreError: it cannot be made, or its disk knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115 (it is closed below)
    except OSError as error:
        raise unwritable(path, 0, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise unwritable(path, 0, error) from error
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the file at `path`.

    Raises:
        StoreError: this user may not know.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except OSError:
        return False
    return False
