"""How a server is asked to end: by a file in its run folder.

That reaches the server whatever its process is called, in a container too, and never another process.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.folder_version import RUN_FOLDER, STORE_FOLDER, version_of
from fedlora.common.locks import is_held
from fedlora.common.run_folder import LOCK_FILE, STATUS_FILE, STOP_FILE

_LOOK_SECONDS = 0.2


@contextmanager
def stop_requests_heeded(folder: Path, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop`, from a thread, if the server of a run folder is asked to end meanwhile."""
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_SECONDS):
            if (folder / STOP_FILE).exists():
                stop()
                return

    looking = threading.Thread(target=look, name="stop requests", daemon=True)
    looking.start()
    try:
        yield
    finally:
        is_over.set()
        looking.join()


def stop_server(folder: Path, *, timeout_seconds: float = 60.0) -> None:
    """Have the server of a folder, a run's or a store's, end in good order, and return once it has.

    Raises:
        StoreError: no server is running there, this user may not stop it, it has not ended in time, or the folder is
            of a newer version.
    """
    version_of(folder, RUN_FOLDER, STORE_FOLDER)
    if not is_held(folder / LOCK_FILE):
        if not (folder / STATUS_FILE).exists():
            raise StoreError(f"{folder}: no server has run there; expected the folder given to server start")
        raise StoreError(f"{folder}: no server is running there")
    try:
        (folder / STOP_FILE).touch()
    except OSError as error:
        raise StoreError(
            f"{folder}: the server cannot be asked to stop ({error.strerror}); ask as a user who may write there"
        ) from error
    deadline = time.monotonic() + timeout_seconds
    while is_held(folder / LOCK_FILE):
        if time.monotonic() > deadline:
            raise StoreError(
                f"{folder}: asked to stop, whoever holds the folder has not ended within {timeout_seconds:.0f} s; a "
                "server will when it can, and a simulation ends with Ctrl-C alone"
            )
        time.sleep(0.1)
    with suppress(OSError):
        (folder / STOP_FILE).unlink()
