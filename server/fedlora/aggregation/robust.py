"""Robust aggregation: what is done to the clients' updates and weights before any method combines them.

Four steps, each of which may be left out, in this order: every update is written in the gauge of the
round's start (`gauge`), its product is clipped (`products`), those most unlike the others are left out,
and the rest is weighed by the geometric median (`selection`). What comes out is adapters and weights
again, so that every method can follow.

Clipping, selection and weighting judge products. Only re-gauging makes that enough: without it an
update whose product looks honest can still have factors that spoil every average of factors.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from fedlora.adapters import Adapter
from fedlora.aggregation.gauge import anchor_of, regauged
from fedlora.aggregation.products import misfit, move_of, product_gram, pulled_back, start_of
from fedlora.aggregation.selection import geometric_median, krum_scores
from fedlora.common.errors import AdapterError
from fedlora.methods import Factor

# Products of four such values, which squared norms are, do not overflow float64. float32 cannot hold larger ones.
_MAX_VALUE = 1e50
_MAX_LOST = 1e-3


@dataclass(frozen=True)
class Robust:
    """What is done to the updates, in the order of the attributes. By default only those that do not fit or are not
    finite are left out.

    Attributes:
        regauge: whether each update is brought as close to the round's start as a change of gauge can, its product
            staying the same. An honest update in another gauge then does no harm, nor does one that hides behind its
            gauge.
        gauge_limit: how far an update may still be from the start after that, from 0 to 1, or else it is left out. A
            client whose A moved, in directions of its own, by t times the size of the start is at t / sqrt(1 + t^2):
            0.95 is t = 3, which no sane training reaches. Noise of rank r in n columns is at sqrt(1 - r / n), 0.99
            for rank 8 in 384; in a layer too small for that, noise is cut to at most the size of the start.
            Twice: of A itself, and of A as seen through B, which grows as A is turned back.
        clip: how far an update may move the weights, as a multiple of the median over the cohort; beyond it is pulled
            back towards the start. None clips nothing.
        select: "multi_krum" keeps all but `attackers` of the updates, those nearest to their neighbours.
        attackers: how many updates are expected to be malicious; the cohort must be larger than twice that plus two.
        weighting: "geometric_median" replaces the given weights by those of the products' geometric median, which
            starts from them: no minority of the weight can move it far.

    Raises:
        ValueError: a setting is out of its range or not one of the words above, or `attackers` and `select` are not
            given together.
    """

    regauge: bool = False
    gauge_limit: float = 0.95
    clip: float | None = None
    select: Literal["all", "multi_krum"] = "all"
    attackers: int = 0
    weighting: Literal["given", "geometric_median"] = "given"

    def __post_init__(self) -> None:
        if not 0 < self.gauge_limit <= 1:
            raise ValueError(f"gauge_limit is {self.gauge_limit}; expected a number above 0 and up to 1")
        if self.clip is not None and not (math.isfinite(self.clip) and self.clip > 0):
            raise ValueError(f"clip is {self.clip}; expected a finite, positive number, or None")
        for name, value, expected in (
            ("select", self.select, ("all", "multi_krum")),
            ("weighting", self.weighting, ("given", "geometric_median")),
        ):
            if value not in expected:
                raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, expected))}")
        if (self.attackers < 1) if self.select == "multi_krum" else (self.attackers != 0):
            raise ValueError(
                f"attackers is {self.attackers} with select = {self.select!r}; "
                "expected at least 1 with 'multi_krum', and 0 with 'all'"
            )


def admitted(
    updates: Mapping[str, Adapter], p: Mapping[str, float], *, reference: Adapter, robust: Robust
) -> tuple[Mapping[str, Adapter], dict[str, float], tuple[str, ...]]:
    """Return the updates and weights that count, and one sentence for each thing that was done.

    The clients are read one by one, layer by layer: once to check them, once to re-gauge, once for the norms. Selection
    and weighting need one layer of all clients at a time, see `product_gram`. What is returned is changed as it is
    read.

    Args:
        updates: adapters by client name.
        p: their weights, with sum 1; the result has its order.
        reference: the adapter that the round started from.

    Raises:
        AdapterError: no update is left, or too few for Multi-Krum.
    """
    cohort = _Cohort({client: updates[client] for client in p})
    anchors = _checked(cohort, reference, robust)
    if robust.regauge:
        _regauge(cohort, reference, anchors, limit=robust.gauge_limit)
    if robust.clip is not None or robust.select != "all" or robust.weighting != "given":
        _clip(cohort, reference, limit=robust.clip)
    clients = list(cohort.updates)
    gram: Tensor | None = None
    if robust.select == "multi_krum" or robust.weighting == "geometric_median":
        gram = product_gram(cohort.updates, reference)
    if gram is not None and robust.select == "multi_krum":
        _select(cohort, gram, attackers=robust.attackers)
    kept = list(cohort.updates)
    total = math.fsum(p[client] for client in kept)
    weights = {client: p[client] / total for client in kept}
    if gram is not None and robust.weighting == "geometric_median":
        index = [clients.index(client) for client in kept]
        found = geometric_median(gram[index][:, index], list(weights.values()))
        for client, weight in zip(kept, found, strict=True):
            if weight < weights[client] / 2:
                cohort.notes.append(
                    f"{client}: weighs {weight:.2g} instead of {weights[client]:.2g} by the geometric median"
                )
        weights = dict(zip(kept, found, strict=True))
    return cohort.updates, weights, tuple(cohort.notes)


class _Cohort:
    """The updates that are left, and what was done so far."""

    def __init__(self, updates: dict[str, Adapter]) -> None:
        self.updates = updates
        self.notes: list[str] = []

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Leave clients out, each for its reason.

        Raises:
            AdapterError: none is left.
        """
        self.notes += [f"{client}: left out, {reason}" for client, reason in reasons.items()]
        self.updates = {client: update for client, update in self.updates.items() if client not in reasons}
        if not self.updates:
            raise AdapterError(f"no update is left to aggregate; {'; '.join(self.notes)}")


def _checked(cohort: _Cohort, reference: Adapter, robust: Robust) -> dict[str, Factor]:
    """Leave out what does not fit or is not finite, and return each layer's anchor for re-gauging.

    In a round in which B is frozen, most clients have the start's B to the last bit. Then it is the anchor, or else
    re-gauging would move it; and that is for the majority to say, not for each client of its own.
    """
    reasons: dict[str, str] = {}
    owners, frozen_B = Counter[str](), Counter[str]()
    for client, update in cohort.updates.items():
        if found := misfit(update, reference):
            reasons[client] = found
            continue
        for path, layer in update.layers.items():
            if not all(map(_is_sound, layer.tensors())):
                reasons[client] = f"{path} holds values that are not finite or beyond {_MAX_VALUE:g}"
                break
            if robust.regauge:
                owners[path] += 1
                frozen_B[path] += int((layer.B.double() == start_of(reference.layers[path], layer)[1]).all())
        for path, tensor in update.dense.items():
            if client not in reasons and not _is_sound(tensor):
                reasons[client] = f"{path} holds values that are not finite or beyond {_MAX_VALUE:g}"
    cohort.leave_out(reasons)
    return {
        path: "B" if 2 * frozen_B[path] > num_owners else anchor_of(reference.layers[path])
        for path, num_owners in owners.items()
    }


def _is_sound(tensor: Tensor) -> bool:
    is_finite = bool(tensor.isfinite().all())
    return is_finite and (tensor.dtype != torch.float64 or bool((tensor.abs() <= _MAX_VALUE).all()))


def _regauge(cohort: _Cohort, reference: Adapter, anchors: Mapping[str, Factor], *, limit: float) -> None:
    reasons = {}
    for client, update in cohort.updates.items():
        found = regauged(update, reference, anchors=anchors)
        cohort.updates[client] = found.adapter
        if found.distance > limit:
            reasons[client] = f"{found.distance:.3g} away from the round's start in any gauge; the limit is {limit:g}"
        elif found.spill > limit:
            reasons[client] = (
                f"{found.spill:.3g} away from the round's start in any gauge, as its B sees it; the limit is {limit:g}"
            )
        elif found.lost > _MAX_LOST:
            reasons[client] = f"{100 * found.lost:.2g} % of its product cannot be written near the round's start"
    cohort.leave_out(reasons)


def _clip(cohort: _Cohort, reference: Adapter, *, limit: float | None) -> None:
    """Leave out the updates whose norms overflow, and pull the others back to `limit` times the median norm."""
    moves = {client: move_of(update, reference) for client, update in cohort.updates.items()}
    norms = {client: move.norm() for client, move in moves.items()}
    cohort.leave_out({client: "its product overflows" for client, norm in norms.items() if not math.isfinite(norm)})
    if limit is None:
        return
    middle = median(norms[client] for client in cohort.updates)
    for client, update in cohort.updates.items():
        if norms[client] > limit * middle:
            share = moves[client].share_within(limit * middle)
            cohort.updates[client] = pulled_back(update, reference, share)
            times = f"{norms[client] / middle:.3g} times the median" if middle > 0 else "while most did not move"
            cohort.notes.append(f"{client}: clipped to {limit:g} times the median, its product moved {times}")


def _select(cohort: _Cohort, gram: Tensor, *, attackers: int) -> None:
    clients = list(cohort.updates)
    if len(clients) <= 2 * attackers + 2:
        raise AdapterError(
            f"{len(clients)} updates for Multi-Krum against {attackers} attackers; expected more than "
            f"{2 * attackers + 2}: wait for more clients, or expect fewer attackers"
        )
    scores = dict(zip(clients, krum_scores(gram, attackers=attackers), strict=True))
    middle = median(scores.values())
    # Of equal scores the first client counts, in the order that all else is done in.
    worst = sorted(clients, key=scores.__getitem__)[len(clients) - attackers :]
    cohort.leave_out(
        {
            client: f"its Multi-Krum score is {scores[client] / middle:.3g} times the median"
            if middle > 0
            else "its Multi-Krum score is among the largest"
            for client in clients
            if client in worst
        }
    )
