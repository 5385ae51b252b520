"""Runs interrupted_run.py as a process of its own."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from warm_start import start_warm

SCRIPT = Path(__file__).with_name("interrupted_run.py")


def interrupted(run: Path, out: Path, *how: str) -> int:
    """Return how a simulation ended that was killed on the way, or not."""
    process = start_warm([str(SCRIPT), str(run), str(out), *how], cwd=out.parent)
    try:
        return process.wait(timeout=600)
    finally:
        # The process that workers are forked from ends by itself, but not at once.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
