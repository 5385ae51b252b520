"""The gauge of an update: which of the pairs (T A, B T^-1), all of one product, it is written as.

The product says what an update does; its gauge is free, and averages of factors are not blind to
it: one honest client in another gauge spoils the mean of A and the mean of B. `regauged` writes an
update in the gauge that is nearest to the round's start, the only one that all clients know of.

One factor is the anchor, A as a rule. With W an orthonormal basis of the rows of A_i, the T that
brings T A_i closest to A_start gives

    A' = A_start W W^T,    B' = B_start + (B_i A_i W - B_start C) C^+,    C = A_start W (rank, rank).

For an invertible T this is B_i T^-1. It also holds where rows of A_i depend on each other: what the
product cannot see of B_i is then what it was at the start, and not whatever a client put there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation.method import Factor
from fedlora.aggregation.products import Start
from fedlora.aggregation.transformed import transformed
from fedlora.aggregation.updates import working_dtype

# Rows of norm 1 whose singular values are below it depend on each other, but for float32's rounding.
_LEAST_SINGULAR_VALUE = 1e-6
_LEAST_COSINE = 1e-9


@dataclass(frozen=True, eq=False)
class Regauged:
    """An update in the gauge of the round's start.

    Attributes:
        adapter: the same products; the maps that it keeps are rank x rank, a hundredth of the update as a rule.
        distance: |A' - A_start| / |A_start|, root mean square over the layers, from 0 to 1 whatever the client sent.
        spill: |B' (A' - A_start)| / |B' A_start| over all layers, from 0 to 1: near 1, B' has grown so much to
            make up for A' that with the A of another client it would make a far larger product than with its own.
        lost: which share of the products' norm has no place in that gauge; 0 but for rounding, as a rule.
    """

    adapter: Adapter
    distance: float
    spill: float
    lost: float


@dataclass(frozen=True, eq=False)
class _Maps:
    """anchor' = anchor @ T-side map, other' = other @ own + start @ filling; all (rank, rank), and the squares."""

    T: Tensor
    own: Tensor
    filling: Tensor
    distance_square: float
    spill_square: float
    reach_square: float
    lost_square: float
    product_square: float


def regauged(update: Adapter, reference: Adapter, *, anchors: Mapping[str, Factor]) -> Regauged:
    """Return a finite update whose layers `reference` has in the gauge nearest to `reference`; it is read once.

    Args:
        anchors: the factor that is brought close to the start, by layer; A or what `anchor_of` gives where missing.
    """
    maps: dict[str, _Maps | None] = {}
    sides: dict[str, Factor] = {}
    for path, layer in update.layers.items():
        start = Start(reference, path, layer)
        sides[path] = anchors.get(path) or anchor_of(start)
        maps[path] = _maps(*_oriented(layer.A, layer.B, sides[path]), *_oriented(start.A, start.B, sides[path]))

    def in_gauge(path: str, layer: LoraLayer) -> LoraLayer:
        found = maps[path]
        if found is None:
            return layer
        start = Start(reference, path, layer)
        anchor, other = _oriented(layer.A, layer.B, sides[path])
        anchor = found.T @ anchor
        other = other @ found.own
        if found.filling.any():
            other += _oriented(start.A, start.B, sides[path])[1] @ found.filling
        A, B = (anchor, other) if sides[path] == "A" else (other.T, anchor.T)
        dtype = working_dtype([layer.A, layer.B])
        return replace(layer, A=A.to(dtype), B=B.to(dtype))

    outline = update.outline
    known = [(outline[path].scaling ** 2, found) for path, found in maps.items() if found is not None]
    return Regauged(
        transformed(update, layer=in_gauge),
        distance=math.sqrt(math.fsum(found.distance_square for _, found in known) / max(1, len(maps))),
        spill=_ratio(
            math.fsum(weight * found.spill_square for weight, found in known),
            math.fsum(weight * found.reach_square for weight, found in known),
        ),
        lost=_ratio(
            math.fsum(weight * found.lost_square for weight, found in known),
            math.fsum(weight * found.product_square for weight, found in known),
        ),
    )


def anchor_of(start: Start) -> Factor:
    """Return the factor of the round's start that tells gauges apart: A, or B where that has the larger rank.

    A is random from the first round on, and B zero; an embedding starts the other way round.
    """
    rank_A = _row_basis(start.A)[0].shape[1]
    if rank_A == start.A.shape[0] or _row_basis(start.B.T)[0].shape[1] <= rank_A:
        return "A"
    return "B"


def _oriented(A: Tensor, B: Tensor, anchor: Factor) -> tuple[Tensor, Tensor]:
    """Return the anchor (rank, n) and the other factor (m, rank) in float64: the pair, or that of the transpose."""
    A, B = A.double(), B.double()
    return (A, B) if anchor == "A" else (B.T, A.T)


def _maps(anchor: Tensor, other: Tensor, start_anchor: Tensor, start_other: Tensor) -> _Maps | None:
    """Return the maps into the start's gauge, None where a pair is in it already, to the last bit."""
    W, H, dropped = _row_basis(anchor)
    identity = torch.eye(anchor.shape[0], dtype=anchor.dtype, device=anchor.device)
    C = start_anchor @ W
    if torch.equal(anchor, start_anchor):
        # A factor that is frozen, and equal everywhere, must stay so.
        if W.shape[1] == anchor.shape[0]:
            return None
        T, own = identity, H @ torch.linalg.pinv(H)
        filling = identity - own
        away = torch.zeros_like(anchor)
    else:
        inverse_C = torch.linalg.pinv(C, rtol=_LEAST_COSINE)
        T, own = C @ torch.linalg.pinv(H), H @ inverse_C
        filling = identity - C @ inverse_C if torch.linalg.matrix_rank(C) < C.shape[0] else torch.zeros_like(identity)
        away = start_anchor - C @ W.T
    moved = other @ own + start_other @ filling
    gram, gram_moved, gram_start = other.T @ other, moved.T @ moved, start_anchor @ start_anchor.T
    missing = torch.cat([H - own @ C, dropped], 1)
    start_square = float(gram_start.trace())
    return _Maps(
        T,
        own,
        filling,
        distance_square=float(away.square().sum()) / start_square if start_square else 0.0,
        spill_square=_square(gram_moved, away @ away.T),
        reach_square=_square(gram_moved, gram_start),
        lost_square=_square(gram, missing @ missing.T),
        product_square=_square(gram, anchor @ anchor.T),
    )


def _row_basis(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return W (n, k), H (rank, k) and H's rest with matrix = H W^T + rest, W orthonormal, k the numerical rank.

    The rank is that of the rows at norm 1: a row may be a million times another and still count.

    Args:
        matrix: (rank, n), float64.
    """
    norms = matrix.norm(dim=1, keepdim=True)
    norms = torch.where(norms > 0, norms, 1.0)
    Q, R = torch.linalg.qr((matrix / norms).T)
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    is_kept = _LEAST_SINGULAR_VALUE * max(1.0, float(S[0])) < S
    H = norms * (Vh.T * S)
    return Q @ U[:, is_kept], H[:, is_kept], H[:, ~is_kept]


def _square(left: Tensor, right: Tensor) -> float:
    """Return the squared norm of a product from the Gram matrices of its factors."""
    return max(0.0, float((left * right).sum()))


def _ratio(square_above: float, square_below: float) -> float:
    return min(1.0, math.sqrt(square_above / square_below)) if square_below > 0 else 0.0
