"""Processes that a benchmark starts, watches and ends."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

_POLL_SECONDS = 0.01
_LAST_CHARACTERS = 4_000

T = TypeVar("T")


class Started:
    """A process with its output in a file, which ends with the context, and all that it started with it.

    With `notes_phases` the moments that it announces (fedlora.common.phases) are in `phases`: name and time by the
    monotonic clock. An announcement takes it some 0.1 ms.
    """

    def __init__(
        self,
        command: Sequence[object],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        notes_phases: bool = False,
    ) -> None:
        self.phases: list[tuple[str, float]] = []
        self._log = log
        own = dict(environment or os.environ)
        descriptors: tuple[int, ...] = ()
        if notes_phases:
            said, say = os.pipe()
            hear, leave = os.pipe()
            own["FEDLORA_PHASES"], descriptors = f"{say},{hear}", (say, hear)
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command], env=own, stdout=output, stderr=output, pass_fds=descriptors
            )
        if notes_phases:
            os.close(say)
            os.close(hear)
            threading.Thread(target=self._note, args=(said, leave), daemon=True).start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        started: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(started, timeout=10)
        self.process.wait(timeout=10)

    def wait(self, seconds: float) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: it failed, or did not end in time.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        if self.process.returncode != 0:
            raise RuntimeError(f"exit status {self.process.returncode}:\n{self.text()}")

    def wait_for(self, what: str, look: Callable[[], T | None], *, seconds: float = 120.0) -> T:
        """Return what `look` gives as soon as it gives something.

        Raises:
            RuntimeError: it gave nothing in time, or the process has failed meanwhile.
        """
        deadline = time.monotonic() + seconds
        while (found := look()) is None:
            if self.process.poll() not in (None, 0) or time.monotonic() > deadline:
                raise RuntimeError(f"waiting for {what}, exit status {self.process.poll()}:\n{self.text()}")
            time.sleep(_POLL_SECONDS)
        return found

    def text(self) -> str:
        """Return the end of what it printed."""
        return self._log.read_text(errors="replace")[-_LAST_CHARACTERS:]

    def _note(self, said: int, leave: int) -> None:
        with open(said) as lines, open(leave, "wb", buffering=0) as answer:
            for line in lines:
                self.phases.append((line.strip(), time.monotonic()))
                with suppress(OSError):
                    answer.write(b"\n")


def beside(script: str) -> list[object]:
    """Return the beginning of a command that runs a file beside this one."""
    return [sys.executable, Path(__file__).with_name(script)]
