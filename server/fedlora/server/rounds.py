"""The rules of a round. Pure: names, updates and numbers in, values out; no Flower, disk, clock or config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.settings import fitted_config
from fedlora.aggregation import Aggregate, Robust, aggregate
from fedlora.common.messages import Score, merge_scores
from fedlora.common.random_streams import stream
from fedlora.methods import Method, MethodState, RoundPlan
from fedlora.server.round_report import RoundReport

_LEAST_TO_SAY = 3


def share(fraction: float, num_clients: int) -> int:
    """Return how many clients a share of them is: at least one."""
    return max(1, math.floor(fraction * num_clients + 0.5))


def cohort(clients: Sequence[str], *, size: int, seed: int, round: int, purpose: str = "cohort") -> tuple[str, ...]:
    """Return the sorted names of `size` clients, drawn by (seed, round, purpose) among the sorted names."""
    names = sorted(clients)
    if size >= len(names):
        return tuple(names)
    chosen = stream(seed, round=round, purpose=purpose).choice(len(names), size=size, replace=False)
    return tuple(names[index] for index in sorted(chosen))


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


def quorum_size(num_asked: int, quorum: float) -> int:
    """Return how many of `num_asked` clients must have an accepted update: `quorum` of them, at least one."""
    # 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(quorum * num_asked - 1e-9))


def validation_scores(reports: Sequence[RoundReport]) -> dict[int, Score]:
    """Return by round the score of the adapter after it, on the validation examples of the clients that judged it.

    A client judges the adapter that it is given before it trains; so a round's score is known in the next one, and
    after the last round from the clients that were asked for it.
    """
    scores: dict[int, Score] = {}
    for report in reports:
        before = [part.before for part in report.clients.values() if part.before is not None and part.age == 0]
        if before:
            scores[report.round - 1] = merge_scores(before)
        if report.validation is not None:
            scores[report.round] = report.validation
    return scores


def best_round(scores: Mapping[int, Score]) -> int | None:
    """Return the round of the lowest loss, the first of equals; None where there is no finite one."""
    finite = {number: score.loss for number, score in scores.items() if math.isfinite(score.loss)}
    return min(finite, key=lambda number: (finite[number], number)) if finite else None


def has_stalled(scores: Mapping[int, Score], *, patience: int) -> bool:
    """Return whether the last `patience` rounds with a score were no better than one before them; never for 0."""
    best = best_round(scores)
    return patience > 0 and best is not None and max(scores) - best >= patience


def start_of_round(adapter: Adapter, *, plan: RoundPlan, seed: int, round: int) -> Adapter:
    """Return the adapter that a round starts from: the last round's, or with fresh pairs where the plan says so.

    A fresh pair is PEFT's: of a linear layer, A uniform within 1 / sqrt(in_features) and B zero; of an embedding, A
    zero and B normal. It is drawn by (seed, round).
    """
    if not plan.starts_fresh:
        return adapter
    draw = stream(seed, round=round, purpose="fresh pairs")
    return replace(adapter, layers={path: _fresh(layer, draw) for path, layer in adapter.layers.items()})


def for_rank(adapter: Adapter, rank: int, *, method: Method) -> Adapter:
    """Return the adapter for a client that trains at most `rank`, with the scaling that all have."""
    if all(layer.rank <= rank for layer in adapter.layers.values()):
        return adapter
    layers = dict(adapter.layers)
    for path, layer in layers.items():
        if layer.rank > rank:
            A, B = method.fit(layer.A, layer.B, rank)
            layers[path] = replace(layer, A=A.contiguous(), B=B.contiguous())
    return replace(adapter, layers=layers, config=fitted_config(adapter.config, layers))


def complete(
    updates: Mapping[str, Adapter],
    *,
    start: Adapter,
    sizes: Mapping[str, int],
    weighting: str,
    method: Method,
    state: MethodState | None = None,
    robust: Robust | None = None,
    ages: Mapping[str, int] | None = None,
) -> Aggregate:
    """Return the next global adapter and the report of its aggregation, from the accepted updates by client name.

    Args:
        start: the adapter that the round started from.
        sizes: by client, the examples or tokens by which it weighs, unless weighting is "uniform".
        state: what the method wanted to know after the round before.
        ages: of late updates, by how many rounds they are late; each halves the weight.
    """
    weights = None if weighting == "uniform" else {name: float(sizes[name]) for name in updates}
    if ages and any(ages.values()):
        weights = {name: (weights[name] if weights else 1.0) * 0.5 ** ages.get(name, 0) for name in updates}
    return aggregate(updates, weights=weights, method=method, reference=start, state=state, robust=robust)


def _fresh(layer: LoraLayer, draw: np.random.Generator) -> LoraLayer:
    zero_A, zero_B = torch.zeros_like(layer.A), torch.zeros_like(layer.B)
    if layer.is_embedding:
        return replace(layer, A=zero_A, B=torch.from_numpy(draw.standard_normal(layer.B.shape)).to(layer.B))
    bound = 1 / math.sqrt(layer.A.shape[1])
    return replace(layer, A=torch.from_numpy(draw.uniform(-bound, bound, layer.A.shape)).to(layer.A), B=zero_B)
