"""What is said of a server that is away: at once, and then ever more rarely, however often it is tried."""

import time

_PAUSES_SECONDS = (60.0, 600.0, 3_600.0)


class Outage:
    """Says which attempts are worth a line."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._next = 0.0
        self._num_lines = 0
        self._num_attempts = 0

    def failed(self, *, now: float | None = None) -> str | None:
        """Return None where a line on an attempt that failed would only repeat the last one, else what to add to it.

        Args:
            now: of a clock that goes on evenly, seconds; the process's if None.
        """
        now = time.monotonic() if now is None else now
        self._began = now if self._began is None else self._began
        self._num_attempts += 1
        if now < self._next:
            return None
        self._next = now + _PAUSES_SECONDS[min(self._num_lines, len(_PAUSES_SECONDS) - 1)]
        self._num_lines += 1
        attempts = f" ({self._num_attempts} attempts in {_duration(now - self._began)})"
        return "" if self._num_attempts == 1 else attempts

    def over(self) -> None:
        """Note that the server is there: the next outage is a new one."""
        self._began, self._next, self._num_lines, self._num_attempts = None, 0.0, 0, 0


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h"
