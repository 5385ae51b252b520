"""When a round is over. Pure: counts and seconds in, decisions out."""

import math
from collections.abc import Iterable, Sequence
from statistics import median

_LEAST_TO_SAY = 3
_TIMES_THE_MEDIAN = 20
_LEAST_SECONDS = 3600.0
_MOST_MISSES = 5


def quorum_size(num_asked: int, quorum: float) -> int:
    """Return how many of `num_asked` clients must have an accepted update: `quorum` of them, at least one."""
    # 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(quorum * num_asked - 1e-9))


def is_over(num_updates: int, num_wanted: int, *, seconds_away: Iterable[float], patience: float) -> bool:
    """Return whether a round waits no more before its deadline: it has all it wants, or nobody is left to wait for.

    Args:
        seconds_away: for how long each client that has not answered has not been there. The round can do without those
            that have been gone for longer than `patience`, and waits for anybody who works.
    """
    return num_updates >= num_wanted or all(away > patience for away in seconds_away)


def why_missing(num_updates: int, num_wanted: int, *, seconds_away: float) -> str:
    """Return the code of why a client that has not answered has no part in a round that is over."""
    if num_updates >= num_wanted:
        return "not_needed"
    return "away" if seconds_away > 0 else "late"


def adaptive_deadline(needed: Sequence[float], num_deviations: float) -> float | None:
    """Return for how many seconds to wait for a cohort that has needed these: median + k x median absolute deviation.

    The deviation counts as a tenth of the median at least: where all were equally fast the next one may be a little
    slower. Of fewer than three nothing can be said, and the deadline is None.
    """
    if len(needed) < _LEAST_TO_SAY:
        return None
    middle = median(needed)
    deviation = median(abs(seconds - middle) for seconds in needed)
    return middle + num_deviations * max(deviation, 0.1 * middle)


def default_deadline(needed: Sequence[float], *, num_missed: int) -> float:
    """Return for how many seconds to wait for a client's update where the run file says nothing of it.

    It is an hour, or 20 times the median of what clients have needed where that is more, and without end while nobody
    has answered: then there is nothing to go on with. Of the hour a client has a quarter for each of the requests in a
    row that it has left without an answer.
    """
    return max(_TIMES_THE_MEDIAN * median(needed), shortened(_LEAST_SECONDS, num_missed)) if needed else math.inf


def shortened(seconds: float, num_missed: int) -> float:
    """Return a time to answer, for who has left so many requests in a row without an answer: a quarter for each."""
    return seconds / float(4 ** min(num_missed, _MOST_MISSES))
