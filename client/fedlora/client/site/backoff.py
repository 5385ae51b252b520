"""How long to wait before a connection is tried again: longer each time, and short again after a good one."""

import random

_FIRST_SECONDS = 0.5


class Backoff:
    """The pauses between attempts."""

    def __init__(self, longest_seconds: float) -> None:
        """`longest_seconds` bounds a pause; a connection that stood longer than that was a good one."""
        self._longest = longest_seconds
        self._pause = _FIRST_SECONDS

    def next_pause(self, connected_seconds: float) -> float:
        """Return for how many seconds to wait after a connection, or an attempt at one, that lasted so long."""
        if connected_seconds > self._longest:
            self._pause = _FIRST_SECONDS
        wait = self._pause * random.uniform(0.5, 1.0)
        self._pause = min(2 * self._pause, self._longest)
        return wait
