"""Whether PEFT reloads folders, asked of one process that imports PEFT once and lives as long as its asker."""

import multiprocessing
import os
import threading
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType

from fedlora.common.errors import one_line
from fedlora.common.withheld_interrupts import interrupts_withheld
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

_SECONDS = 600.0
_END_SECONDS = 5.0


class ResidentCheck:
    """Says of PEFT folders why PEFT does not reload them; a context manager, at whose end its process is gone.

    The process starts with the first folder, knows no GPU and no network, and is silent. One that dies is replaced
    when the next folder comes.
    """

    def __init__(self, *, timeout_seconds: float = _SECONDS) -> None:
        """`timeout_seconds` is the most that a folder may take."""
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._is_over = False
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> "ResidentCheck":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A folder may be with the process right now: whoever waits for the answer then hears that it has died.
        self._is_over = True
        if (process := self._process) is not None:
            with suppress(ValueError):  # Its own caller has just ended it.
                process.kill()
        with self._lock:
            self._end(is_killed=True)

    def __call__(self, folder: Path) -> str:
        """Return why PEFT does not reload a folder, nothing where it does."""
        with self._lock:
            if self._is_over:
                return "the check is over"
            connection = self._connection or self._start()
            try:
                connection.send(folder.absolute())
                if not connection.poll(self._timeout_seconds):
                    self._end(is_killed=True)
                    return f"PEFT did not reload it within {self._timeout_seconds:g} s"
                refusal: str = connection.recv()
            except (EOFError, OSError):
                return f"PEFT does not reload it: the process that tried has died (exit code {self._end()})"
        return refusal and f"PEFT does not reload it: {refusal}"

    def _start(self) -> Connection:
        processes = multiprocessing.get_context("spawn")
        ours, theirs = processes.Pipe()
        process = processes.Process(target=_answer, args=(theirs,), name="PEFT check", daemon=True)
        with theirs, interrupts_withheld():
            process.start()
        self._process, self._connection = process, ours
        return ours

    def _end(self, *, is_killed: bool = False) -> int | None:
        """End the process, and return its exit code."""
        if self._process is None or self._connection is None:
            return None
        self._connection.close()
        if not is_killed:
            self._process.join(_END_SECONDS)
        self._process.kill()
        self._process.join()
        code = self._process.exitcode
        self._process.close()
        self._process = self._connection = None
        return code


def _answer(connection: Connection) -> None:
    """Answer each folder from `connection` with why PEFT does not reload it, until it closes."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    warnings.simplefilter("ignore")
    spare_bitsandbytes()
    while True:
        try:
            folder: Path = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_refusal(folder))


def _refusal(folder: Path) -> str:
    # Here, because the environment comes first.
    try:
        from fedlora.finished.peft_check import peft_refusal
    except ImportError as error:
        return f"it cannot be imported ({one_line(error)})"
    return peft_refusal(folder)
