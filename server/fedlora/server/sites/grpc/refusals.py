"""Callers and uploads that are refused: a line in the log and an event for the first, and then their number.

A flood of refused calls must fill neither the log nor the disk.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from fedlora.common.printable import printable
from fedlora.server.record.events import CallsRefused, Listener, ignore

logger = logging.getLogger(__name__)

_WINDOW_SECONDS = 60.0
_MOST_KEYS = 500
_MOST_CHARACTERS = 300
_OTHERS = "many others"


@dataclass
class _Window:
    """The refusals of one kind since the one that was told."""

    began: float
    num_more: int = 0


class Refusals:
    """Tells of refused calls; safe to use from any thread."""

    def __init__(self, listener: Listener = ignore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._listener = listener
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str, str], _Window] = {}

    def note(self, code: str, *, peer: str, site: str = "", why: object = "") -> None:
        """Tell of a refused call, or count it where one like it was told of a moment ago.

        Args:
            code: why.
            peer: the address, as gRPC writes it.
            site: who the caller is, or says it is.
            why: what was found, of the first one.
        """
        key = code, printable(site, most=60), address_of(peer)
        with self._lock:
            if key not in self._windows and len(self._windows) >= _MOST_KEYS:
                key = code, "", _OTHERS
            if key in self._windows:
                self._windows[key].num_more += 1
                return
            self._windows[key] = _Window(self._clock())
        self._say(key, 1, printable(why, most=_MOST_CHARACTERS))

    def tell(self, *, is_over: bool = False) -> None:
        """Tell how many there were since, where a minute has passed or `is_over`."""
        now = self._clock()
        with self._lock:
            ended = [key for key, window in self._windows.items() if is_over or now - window.began > _WINDOW_SECONDS]
            over = [(key, self._windows.pop(key)) for key in ended]
        for key, window in over:
            if window.num_more:
                self._say(key, window.num_more)

    def _say(self, key: tuple[str, str, str], num: int, why: str = "") -> None:
        code, site, address = key
        who = f"{site} at {address}" if site else address
        times = "" if num == 1 else f", {num:,} times more"
        logger.warning("refused %s: %s%s%s", who, code, f" ({why})" if why else "", times)
        self._listener(CallsRefused(code, site, address, num))


def address_of(peer: str) -> str:
    """Return the address in what gRPC calls a peer, such as ipv4:192.0.2.1:50312, without the port."""
    kind, _, rest = unquote(peer).partition(":")
    return printable(rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else peer, most=60)
