"""Whether the worker's present request is still wanted: the parent may say no while it trains."""

import threading

_unwanted = threading.Event()


def interrupt() -> None:
    """Note that nobody waits for the present request any more."""
    _unwanted.set()


def begin() -> None:
    """Begin another request, which is wanted."""
    _unwanted.clear()


def is_unwanted() -> bool:
    """Return whether the present request need not be finished."""
    return _unwanted.is_set()
