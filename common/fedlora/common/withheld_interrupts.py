"""Ctrl-C reaches the whole process group; what multiprocessing starts under `interrupts_withheld` never sees it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def interrupts_withheld() -> Iterator[None]:
    """Let processes that start inherit SIGINT as blocked."""
    # It unblocks the signal where it has to start its own process first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
