"""Something that is done from time to time beside everything else."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def repeatedly(do: Callable[[], object], *, seconds: float) -> Iterator[None]:
    """Do something every so many seconds, in a thread of its own, while the block lasts."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(seconds):
            try:
                do()
            except Exception:
                logger.exception("what is done every %g s failed", seconds)

    thread = threading.Thread(target=work, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
