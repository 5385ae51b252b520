"""SIGTERM, which service managers and containers send, ends a command as Ctrl-C does: in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM has come."""


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Raise `Terminated` wherever the main thread is when SIGTERM comes."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a command that was interrupted, as a shell has it: 128 and the signal's number."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED
