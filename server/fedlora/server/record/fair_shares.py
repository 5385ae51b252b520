"""How much one client of several may count: for a cap on weights, and for a mean score that no client owns. Pure."""

import math
from collections.abc import Iterable, Mapping
from statistics import median, median_low

from fedlora.common.messages import Score, merge_scores

# More than so many times the middle one nobody counts, unless a run says what else is the most.
MOST_TIMES_MEDIAN = 10
_MIN_TO_COMPARE = 3


def capped(weights: Mapping[str, float], *, max_share: float | None = None) -> dict[str, float]:
    """Return the weights, none of them larger than allowed.

    Args:
        max_share: the most of the sum of what is returned, of 1; where there are fewer than 1 / max_share, all weigh
            alike. None: ten times the median, of two the lesser one.
    """
    if not weights:
        return {}
    most = _largest(weights.values(), max_share)
    return {name: min(weight, most) for name, weight in weights.items()}


def merge_fairly(scores: Mapping[str, Score]) -> Score:
    """Return the mean of the clients' scores, of which there is at least one, in which no client has its way.

    Its weight is capped as by `capped`, and of three or more no loss counts for more than ten times the median loss.
    Where no client is beyond that, it is the plain mean; and where a loss is not finite, so that nothing is hidden.
    """
    merged = merge_scores(list(scores.values()))
    if not math.isfinite(merged.loss):
        return merged
    weights = {name: float(score.weight) for name, score in scores.items()}
    losses = {name: score.loss for name, score in scores.items()}
    middle = median(losses.values())
    fair_losses = losses
    if len(losses) >= _MIN_TO_COMPARE and middle > 0:
        fair_losses = {name: min(loss, MOST_TIMES_MEDIAN * middle) for name, loss in losses.items()}
    fair_weights = capped(weights)
    if fair_weights == weights and fair_losses == losses:
        return merged
    total = sum(fair_weights.values())
    return Score(
        merged.num_examples,
        sum(fair_losses[name] * weight for name, weight in fair_weights.items()) / total,
        sum(scores[name].metric * weight for name, weight in fair_weights.items()) / total,
        merged.num_tokens,
    )


def _largest(weights: Iterable[float], max_share: float | None) -> float:
    """Return the largest weight that is allowed among these."""
    ordered = sorted(weights)
    if max_share is None:
        return MOST_TIMES_MEDIAN * median_low(ordered)
    for num_capped in range(len(ordered)):
        smaller = ordered[: len(ordered) - num_capped]
        left = 1 - num_capped * max_share
        if left <= 0:
            break
        # All that are capped weigh the same, and each of them the most of the sum of all.
        most = max_share * sum(smaller) / left
        if smaller[-1] <= most:
            return ordered[-1] if num_capped == 0 else most
    return ordered[0]
