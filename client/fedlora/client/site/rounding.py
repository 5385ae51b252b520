"""Scores as they leave a site: no more exact than the number of examples supports. Pure.

A share of n examples has a standard error of at most 1 / (2 sqrt(n)). What is told is a multiple of the largest of
1, 2, 5 times a power of ten that is not above that: of 20 examples 0.1, of 64 it is 0.05, of 1,000 it is 0.01. One
example more or less then mostly changes nothing. Losses are rounded with the same step; where they are means over
tokens, n is the number of tokens. A task of one's own has scales of its own: there the step is relative.
"""

import math
from dataclasses import replace

from fedlora.common.messages import Generated, Score

# No honest model is surer than that of a wrong answer: a larger loss of one example would tell of it alone.
MOST_LOSS = 10.0


def step_of(num: int) -> float:
    """Return the step in which a mean over `num` examples is told."""
    error = 1 / (2 * math.sqrt(num))
    power = 10.0 ** math.floor(math.log10(error))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= error or factor == 1)


def rounded(value: float, num: int, *, is_relative: bool = False) -> float:
    """Return a mean over `num` examples as it is told; what is not finite stays.

    Args:
        is_relative: whether the step is that many parts of the value's power of ten.
    """
    if not math.isfinite(value) or value == 0:
        return value
    step = step_of(num)
    if is_relative:
        step *= 10.0 ** math.floor(math.log10(abs(value)))
    # As many decimals as the step has: a product of binary fractions has more.
    return round(round(value / step) * step, max(0, -math.floor(math.log10(step))))


def rounded_score(score: Score, *, is_relative: bool) -> Score:
    """Return a score as it is told."""
    return replace(
        score,
        loss=rounded(score.loss, score.weight, is_relative=is_relative),
        metric=rounded(score.metric, score.weight, is_relative=is_relative),
    )


def rounded_generated(generated: Generated) -> Generated:
    """Return what generated answers are worth as it is told."""
    num = generated.num_examples
    return Generated(num, rounded(generated.exact_match, num), rounded(generated.rouge_l, num))
