"""Robust aggregation: what is done to the clients' updates and weights before any method combines them.

Judged is what an update does, the change of the weights that its products make, and never A or B
alone: the same product can be written with any factor large. Norm clipping after Sun et al. (2019,
arXiv 1911.07963); Multi-Krum after Blanchard et al. (NeurIPS 2017, arXiv 1703.02757); the geometric
median after Pillutla, Kakade, Harchaoui (2019, arXiv 1912.13445), each on the products.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation.gauge import regauged
from fedlora.aggregation.products import Line, Start, gram_of_changes, line_of
from fedlora.aggregation.transformed import transformed
from fedlora.common.errors import AdapterError

_NUM_BISECTIONS = 100
_MAX_ITERATIONS = 1000
_CONVERGED = 1e-12
# Of the median distance: a client nearer to the geometric median than that weighs as if it were so far.
_SMOOTHING = 1e-6


@dataclass(frozen=True)
class Robust:
    """What is done to the updates, in this order. By default nothing but to leave out those that are not finite.

    Attributes:
        regauge: write each update in the gauge of the round's start: the pair of the same product whose A is nearest
            to the A that the round started from. An update of which nothing like that A is left is left out.
        gauge_limit: how far from the start's A an update may remain, of its norm: 0 is none, 1 is orthogonal to it. An
            honest client reaches 0.95 where its A moved by three times its own norm in one round.
        clip: pull an update back, along the line to the round's start, until its change is so many times the median.
        select: "multi_krum" keeps the updates with the nearest neighbours, all but `attackers`.
        attackers: how many are left out by "multi_krum", which needs more than twice as many others, and two.
        weighting: "geometric_median" weighs an update down by its distance from the weighted middle of all.

    Raises:
        ValueError: a setting is out of its range.
    """

    regauge: bool = False
    gauge_limit: float = 0.95
    clip: float | None = None
    select: Literal["all", "multi_krum"] = "all"
    attackers: int = 0
    weighting: Literal["given", "geometric_median"] = "given"

    def __post_init__(self) -> None:
        if not 0 < self.gauge_limit <= 1:
            raise ValueError(f"gauge_limit is {self.gauge_limit}; expected more than 0, at most 1")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"clip is {self.clip}; expected a positive, finite number or None")
        if self.attackers < 0:
            raise ValueError(f"attackers is {self.attackers}; expected 0 or more")
        if self.select not in ("all", "multi_krum"):
            raise ValueError(f"select is {self.select!r}; expected 'all' or 'multi_krum'")
        if self.weighting not in ("given", "geometric_median"):
            raise ValueError(f"weighting is {self.weighting!r}; expected 'given' or 'geometric_median'")


def admitted(
    updates: Mapping[str, Adapter], p: Mapping[str, float], *, reference: Adapter, robust: Robust
) -> tuple[Mapping[str, Adapter], dict[str, float], tuple[str, ...]]:
    """Return the updates that count, changed as they are read, their weights with sum 1, and what was done to whom.

    Args:
        updates: by client, with the layers of `reference` or some of them.
        p: the clients' weights, which gives their order.
        reference: the adapter that the round started from.

    Raises:
        AdapterError: no update is left, there are too few for Multi-Krum, or one does not fit `reference`.
    """
    notes: list[str] = []
    kept: dict[str, Adapter] = {}
    for client in p:
        _require_fitting(client, updates[client], reference)
        if _is_finite(updates[client]):
            kept[client] = updates[client]
        else:
            notes.append(f"{client}: left out, it has values that are not finite")
    if robust.regauge:
        kept = _in_gauge(kept, reference, robust.gauge_limit, notes)
    if robust.clip is not None and kept:
        kept = _clipped(kept, reference, robust.clip, notes)
    if robust.select == "multi_krum":
        kept = _selected(kept, reference, robust.attackers, notes)
    if not kept:
        raise AdapterError(f"no update is left: {'; '.join(notes)}")
    total = math.fsum(p[client] for client in kept)
    weights = {client: p[client] / total for client in kept}
    if robust.weighting == "geometric_median":
        weights = _median_weights(kept, weights, reference, notes)
    return kept, weights, tuple(notes)


def krum_order(squares: Tensor, *, attackers: int) -> list[int]:
    """Return the clients by Multi-Krum's score, the best first.

    The score is the sum of the squared distances to the K - attackers - 2 nearest others.

    Args:
        squares: squared distances, (K, K).
    """
    num_neighbours = squares.shape[0] - attackers - 2
    others = squares.clone().fill_diagonal_(math.inf)
    scores = others.sort(dim=1).values[:, :num_neighbours].sum(1).tolist()
    return sorted(range(len(scores)), key=lambda index: (scores[index], index))


def geometric_median_weights(gram: Tensor, p: Tensor) -> Tensor:
    """Return the weights w (K,), sum 1, with which sum_i w_i Delta_i is the geometric median of the Delta_i.

    It minimises sum_i p_i |Delta_i - z|, found by Weiszfeld's iteration, slightly smoothed at the clients themselves.

    Args:
        gram: <Delta_i, Delta_j>, (K, K), float64.
        p: the clients' weights, (K,), sum 1.
    """
    w = p
    for _ in range(_MAX_ITERATIONS):
        distances = (gram.diagonal() - 2 * gram @ w + w @ gram @ w).clamp_min(0).sqrt()
        nearest = _SMOOTHING * float(distances.median())
        if nearest == 0:
            return w
        moved = p / distances.clamp_min(nearest)
        moved = moved / moved.sum()
        has_converged = float((moved - w).abs().max()) < _CONVERGED
        w = moved
        if has_converged:
            break
    return w


def _require_fitting(client: str, update: Adapter, reference: Adapter) -> None:
    for path, layer in update.outline.items():
        start = reference.layers.get(path)
        if start is None:
            raise AdapterError(f"{path}: a layer of {client} that the round's start does not have")
        sides = (layer.A.shape[1], layer.B.shape[0], layer.is_embedding)
        if sides != (start.A.shape[1], start.B.shape[0], start.is_embedding) or layer.rank > start.rank:
            raise AdapterError(f"{path}: {layer.shapes()} of {client} against {start.shapes()} at the round's start")
    for path, tensor in update.dense.items():
        if path not in reference.dense or reference.dense[path].shape != tensor.shape:
            raise AdapterError(f"{path}: {tuple(tensor.shape)} of {client} is not what the round started from")


def _is_finite(update: Adapter) -> bool:
    pairs = (part for path in update.layers for part in _parts(update.layers[path]))
    return all(bool(part.isfinite().all()) for part in pairs) and all(
        bool(update.dense[path].isfinite().all()) for path in update.dense
    )


def _parts(layer: LoraLayer) -> list[Tensor]:
    return [part for part in (layer.A, layer.B, layer.bias, layer.magnitude) if part is not None]


def _in_gauge(updates: Mapping[str, Adapter], reference: Adapter, limit: float, notes: list[str]) -> dict[str, Adapter]:
    kept: dict[str, Adapter] = {}
    for client, update in updates.items():
        found = regauged(update, reference, anchors={})
        worst = max(found.distance, found.spill, found.lost)
        if worst > limit:
            notes.append(
                f"{client}: left out, its A has little of the A that the round started from ({worst:.3g} of 1 away)"
            )
        else:
            kept[client] = found.adapter
    return kept


def _clipped(updates: Mapping[str, Adapter], reference: Adapter, clip: float, notes: list[str]) -> dict[str, Adapter]:
    lines = {client: line_of(update, reference) for client, update in updates.items()}
    norms = {client: math.sqrt(max(0.0, line.square_at(1.0))) for client, line in lines.items()}
    middle = median(norms.values())
    kept = dict(updates)
    for client, norm in norms.items():
        if norm > clip * middle:
            share = _share_within(lines[client], clip * middle)
            kept[client] = _pulled_back(updates[client], reference, share)
            times = f"{norm / middle:.3g} times the median" if middle > 0 else "where the median did not change"
            notes.append(f"{client}: pulled back to {share:.3g} of its way, it changed {times}")
    return kept


def _share_within(line: Line, limit: float) -> float:
    """Return the g in [0, 1) with |g X + g^2 Y| = limit; at g = 1 it is larger."""
    low, high = 0.0, 1.0
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if line.square_at(middle) < limit**2 else (low, middle)
    return low


def _pulled_back(update: Adapter, reference: Adapter, share: float) -> Adapter:
    def towards(start: Tensor, end: Tensor) -> Tensor:
        wide = torch.promote_types(end.dtype, torch.float32)
        return torch.lerp(start.to(end.device, wide), end.to(wide), share)

    def pull_layer(path: str, layer: LoraLayer) -> LoraLayer:
        start, whole = Start(reference, path, layer), reference.layers[path]
        pulled = replace(layer, A=towards(start.A, layer.A), B=towards(start.B, layer.B))
        if layer.bias is not None and whole.bias is not None:
            pulled = replace(pulled, bias=towards(whole.bias * (whole.scaling / layer.scaling), layer.bias))
        if layer.magnitude is not None and whole.magnitude is not None:
            pulled = replace(pulled, magnitude=towards(whole.magnitude, layer.magnitude))
        return pulled

    return transformed(update, layer=pull_layer, dense=lambda path, tensor: towards(reference.dense[path], tensor))


def _selected(
    updates: Mapping[str, Adapter], reference: Adapter, attackers: int, notes: list[str]
) -> dict[str, Adapter]:
    clients = list(updates)
    if len(clients) <= 2 * attackers + 2:
        raise AdapterError(
            f"{len(clients)} updates; multi_krum with attackers = {attackers} needs at least {2 * attackers + 3}: "
            "expect fewer attackers, or ask more clients"
        )
    gram = gram_of_changes(updates, reference)
    own = gram.diagonal()
    order = krum_order((own[:, None] + own[None, :] - 2 * gram).clamp_min(0), attackers=attackers)
    left_out = sorted(order[len(clients) - attackers :])
    notes += [f"{clients[index]}: left out, the updates nearest to it are far (multi_krum)" for index in left_out]
    return {client: updates[client] for index, client in enumerate(clients) if index not in left_out}


def _median_weights(
    updates: Mapping[str, Adapter], p: Mapping[str, float], reference: Adapter, notes: list[str]
) -> dict[str, float]:
    gram = gram_of_changes(updates, reference)
    weights = geometric_median_weights(gram, torch.tensor(list(p.values()), dtype=torch.float64)).tolist()
    found = dict(zip(p, weights, strict=True))
    notes.append("weights by the geometric median: " + ", ".join(f"{name} {found[name]:.3g}" for name in found))
    return found
