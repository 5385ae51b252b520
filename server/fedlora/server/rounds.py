"""The rules of a round. Pure: names, updates and numbers in, values out; no Flower, disk, clock or config."""

import math
from collections.abc import Mapping, Sequence

from fedlora.adapters import Adapter
from fedlora.aggregation import Aggregate, Method, aggregate
from fedlora.common.messages import Score
from fedlora.common.random_streams import stream


def cohort(clients: Sequence[str], *, fraction: float, seed: int, round: int) -> tuple[str, ...]:
    """Return the sorted names of a round's clients, at least one, drawn by (seed, round) among the sorted names."""
    names = sorted(clients)
    size = max(1, math.floor(fraction * len(names) + 0.5))
    if size == len(names):
        return tuple(names)
    chosen = stream(seed, round=round, purpose="cohort").choice(len(names), size=size, replace=False)
    return tuple(names[index] for index in sorted(chosen))


def quorum_size(num_asked: int, quorum: float) -> int:
    """Return how many of `num_asked` clients must have an accepted update: `quorum` of them, at least one."""
    # 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(quorum * num_asked - 1e-9))


def complete(
    updates: Mapping[str, Adapter], *, num_examples: Mapping[str, int], weighting: str, method: Method
) -> Aggregate:
    """Return the next global adapter and the report of its aggregation, from the accepted updates by client name."""
    weights = {name: float(num_examples[name]) for name in updates} if weighting == "examples" else None
    return aggregate(updates, weights=weights, method=method)


def merge_scores(scores: Sequence[Score]) -> Score:
    """Return the score over the examples of all of `scores`, of which there is at least one."""
    total = sum(score.num_examples for score in scores)
    return Score(
        total,
        sum(score.loss * score.num_examples for score in scores) / total,
        sum(score.metric * score.num_examples for score in scores) / total,
    )
