"""The learning rate's course over a whole run."""

import math


def learning_rate_factor(progress: float, *, schedule: str, warmup: float) -> float:
    """Return the factor on the peak learning rate at `progress` of the run (0 to 1).

    It rises linearly in the first `warmup` share of the run, then stays (constant), or falls to
    zero at the end, linearly or along half a cosine.
    """
    if progress < warmup:
        return progress / warmup
    fallen = (progress - warmup) / (1.0 - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - fallen
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * fallen))
    raise ValueError(f"schedule is {schedule!r}; expected constant, linear or cosine")
