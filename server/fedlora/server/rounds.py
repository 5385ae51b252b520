"""The rules of a round. Pure: names, updates and numbers in, values out; no Flower, disk, clock or config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.settings import fitted_config
from fedlora.aggregation import Aggregate, Method, Robust, RoundPlan, aggregate
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
    num_examples: Mapping[str, int],
    weighting: str,
    method: Method,
    robust: Robust | None = None,
) -> Aggregate:
    """Return the next global adapter and the report of its aggregation, from the accepted updates by client name.

    Args:
        start: the adapter that the round started from.
    """
    weights = {name: float(num_examples[name]) for name in updates} if weighting == "examples" else None
    return aggregate(updates, weights=weights, method=method, reference=start, robust=robust)


def _fresh(layer: LoraLayer, draw: np.random.Generator) -> LoraLayer:
    zero_A, zero_B = torch.zeros_like(layer.A), torch.zeros_like(layer.B)
    if layer.is_embedding:
        return replace(layer, A=zero_A, B=torch.from_numpy(draw.standard_normal(layer.B.shape)).to(layer.B))
    bound = 1 / math.sqrt(layer.A.shape[1])
    return replace(layer, A=torch.from_numpy(draw.uniform(-bound, bound, layer.A.shape)).to(layer.A), B=zero_B)


def merge_scores(scores: Sequence[Score]) -> Score:
    """Return the score over the examples of all of `scores`, of which there is at least one."""
    total = sum(score.num_examples for score in scores)
    return Score(
        total,
        sum(score.loss * score.num_examples for score in scores) / total,
        sum(score.metric * score.num_examples for score in scores) / total,
    )
