"""How many steps a round has, and the learning rate's course over a whole run."""

import math
from typing import cast

from fedlora.common.config import TrainSection


def steps_of_round(settings: TrainSection, num_examples: int) -> int:
    """Return a round's optimiser steps for a client with so many examples."""
    if settings.epochs is None:
        return cast(int, settings.steps)
    return max(1, round(settings.epochs * num_examples / min(settings.batch_size, num_examples)))


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
