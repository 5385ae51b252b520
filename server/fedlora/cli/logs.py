"""Where warnings go: above the live view where there is one, else to stderr."""

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from rich.console import Console
from rich.logging import RichHandler

from fedlora.client.worker.output import WorkerOutput
from fedlora.common.printable import PrintableRecords

_DRAIN_SECONDS = 2.0


def log_to(console: Console, *, level: int = logging.WARNING) -> None:
    """Show what is logged."""
    handler = RichHandler(console=console, show_time=False, show_path=False) if console.is_terminal else None
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler] if handler else None)
    escape_records()


def escape_records() -> None:
    """Have whatever is logged shown as text alone, wherever the words are from."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(PrintableRecords())


@contextmanager
def terminal_to_ourselves() -> Iterator[None]:
    """Log what libraries and child processes write to standard error, where that is a terminal.

    Python's own streams are rich's affair, which knows nothing of what is written to the descriptor.
    """
    if not os.isatty(2) or any(map(_writes_there, logging.getLogger().handlers)):
        yield
        return
    ours, theirs = multiprocessing.Pipe(duplex=False)
    before = os.dup(2)
    with theirs:
        os.dup2(theirs.fileno(), 2)
    WorkerOutput("fedlora", ours)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        # A child may keep its end for as long as this process lives, so that there is no end to wait for.
        deadline = time.monotonic() + _DRAIN_SECONDS
        while _has_more(ours) and time.monotonic() < deadline:
            time.sleep(0.01)


def _writes_there(handler: logging.Handler) -> bool:
    """Return whether a handler, which some library has added, writes to the descriptor what it would then read."""
    stream = getattr(handler, "stream", None)
    try:
        return stream is not None and stream.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _has_more(pipe: Connection) -> bool:
    try:
        return pipe.poll()
    except OSError:  # Read to its end, and closed.
        return False
