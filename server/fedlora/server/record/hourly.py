"""What strangers and hostile sites can cause as often as they like: so many an hour are told, the others counted."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_HOUR_SECONDS, _LOOK_SECONDS = 3_600.0, 60.0


@dataclass
class _Hour:
    """What came of one kind in the hour that is on: since when, how many were told, and how many are only counted."""

    began: float
    num_told: int = 0
    num_counted: int = 0


class Hourly:
    """How often each kind of thing may be told of each site, address or reason; safe to use from any thread."""

    def __init__(self, *, most: int = 20, most_keys: int = 2_000, clock: Callable[[], float] = time.monotonic) -> None:
        """`most` are told in an hour of each; beyond `most_keys` of them the others count as one."""
        self._most = most
        self._most_keys = most_keys
        self._clock = clock
        self._lock = threading.Lock()
        self._hours: dict[tuple[str, str], _Hour] = {}
        self._next_look = -math.inf

    def admits(self, kind: str, about: str, num: int = 1) -> bool:
        """Return whether something is told; else it is counted, for as many as it stands for."""
        with self._lock:
            key = kind, about
            if key not in self._hours and len(self._hours) >= self._most_keys:
                key = kind, "others"
            hour = self._hours.setdefault(key, _Hour(self._clock()))
            if hour.num_told < self._most:
                hour.num_told += 1
                return True
            hour.num_counted += num
            return False

    def counted(self, *, is_over: bool = False) -> Iterator[tuple[str, str, int]]:
        """Yield kind, about what, and how many were only counted, of the hours that are over; `is_over`: of all."""
        now = self._clock()
        with self._lock:
            if not is_over and now < self._next_look:
                return
            self._next_look = now + _LOOK_SECONDS
            ended = [key for key, hour in self._hours.items() if is_over or now - hour.began > _HOUR_SECONDS]
            over = [(key, self._hours.pop(key)) for key in ended]
        for (kind, about), hour in over:
            if hour.num_counted:
                yield kind, about, hour.num_counted
