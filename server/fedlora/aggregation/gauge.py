"""The gauge of an update: which of the pairs (T A, B T^-1), all of one product, it is written as.

The product says what an update does; its gauge is free, and averages of factors are not blind to
it: one honest client in another gauge spoils the mean of A and the mean of B. `regauged` writes an
update in the gauge that is nearest to the round's start, the only one that all clients know of.

One factor is the anchor, A as a rule. With W an orthonormal basis of the rows of A_i, the T that
brings T A_i closest to the start A_s gives

    A' = A_s W W^T,    B' = B_s + (B_i A_i W - B_s C) C^+,    C = A_s W (rank, rank).

For an invertible T this is B_i T^-1. It also holds where rows of A_i depend on each other: what the
product cannot see of B_i is then what it was at the start, and not whatever a client put there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation.products import start_of
from fedlora.aggregation.transformed import transformed
from fedlora.aggregation.updates import working_dtype
from fedlora.methods import Factor

# Rows of norm 1 with a singular value below it depend on each other, but for float32's rounding.
_LEAST_ROW = 1e-6
# Relative to the largest singular value of C: below it, a row of the start has no counterpart in the update.
_LEAST_COUNTERPART = 1e-9


@dataclass(frozen=True, eq=False)
class Regauged:
    """An update in the gauge of the round's start. What is said of A holds for B where that is the anchor.

    Attributes:
        adapter: the same products, in float32 or float64. Its layers are turned whenever they are read; it keeps maps
            of rank x rank for that, which take about a hundredth of the update's memory.
        distance: |A' - A_s| / |A_s|, as a root mean square over the layers: at most 1, whatever the client sent.
        spill: |B' (A' - A_s)| / |B' A_s| over all layers: at most 1. Near 1, B' has grown so much to make up for A'
            that with another client's A it would make a far larger product than it makes with its own.
        lost: the share of its products' norm that cannot be written in that gauge; 0, but for rounding, as a rule.
    """

    adapter: Adapter
    distance: float
    spill: float
    lost: float


@dataclass(frozen=True, eq=False)
class _Turn:
    """How one pair gets into its gauge: anchor' = T anchor, other' = other @ own + start @ filling.

    Attributes:
        T, own, filling: (rank, rank). Without T the pair is in that gauge already; without filling it is zero.
        distance, spill, reach, lost, product: the squares of which `Regauged` has the ratios.
    """

    T: Tensor | None
    own: Tensor
    filling: Tensor | None
    distance: float
    spill: float
    reach: float
    lost: float
    product: float


def regauged(update: Adapter, reference: Adapter, *, anchors: Mapping[str, Factor]) -> Regauged:
    """Return a finite update that fits to `reference` in the gauge nearest to it; it is read once, layer by layer.

    Args:
        anchors: for each layer the factor that is brought close to the start, see `anchor_of`.
    """
    turns: dict[str, _Turn] = {}
    for path, layer in update.layers.items():
        pair, start = (layer.A, layer.B), start_of(reference.layers[path], layer)
        turns[path] = _turn(*_anchor_first(*pair, anchors[path]), *_anchor_first(*start, anchors[path]))

    def layer_in_gauge(path: str, layer: LoraLayer) -> LoraLayer:
        turn, dtype = turns[path], working_dtype([layer.A, layer.B])
        if turn.T is None:
            return layer
        anchor, other = _anchor_first(layer.A, layer.B, anchors[path])
        anchor, other = turn.T @ anchor, other @ turn.own
        if turn.filling is not None:
            start = start_of(reference.layers[path], layer)
            other = other + _anchor_first(*start, anchors[path])[1] @ turn.filling
        A, B = (anchor, other) if anchors[path] == "A" else (other.T, anchor.T)
        return replace(layer, A=A.to(dtype), B=B.to(dtype))

    outline = update.outline

    def total(square: str) -> float:
        return sum(outline[path].scaling ** 2 * float(getattr(turn, square)) for path, turn in turns.items())

    return Regauged(
        transformed(update, layer=layer_in_gauge),
        distance=math.sqrt(sum(turn.distance for turn in turns.values()) / max(1, len(turns))),
        spill=_ratio(total("spill"), total("reach")),
        lost=_ratio(total("lost"), total("product")),
    )


def anchor_of(layer: LoraLayer) -> Factor:
    """Return the factor that tells gauges apart: A, or B where that has the larger rank.

    A is random from the first round on, and B zero; an embedding starts the other way round.
    """
    rank_A = _row_basis(layer.A.double()).rank
    if rank_A == layer.A.shape[0] or _row_basis(layer.B.double().T).rank <= rank_A:
        return "A"
    return "B"


def _anchor_first(A: Tensor, B: Tensor, anchor: Factor) -> tuple[Tensor, Tensor]:
    """Return the anchor (rank, n) and the other factor (m, rank) in float64: the pair, or that of the transpose."""
    A, B = A.double(), B.double()
    return (A, B) if anchor == "A" else (B.T, A.T)


def _turn(anchor: Tensor, other: Tensor, start_anchor: Tensor, start_other: Tensor) -> _Turn:
    basis = _row_basis(anchor)
    C = start_anchor @ basis.W
    identity = torch.eye(anchor.shape[0], dtype=anchor.dtype, device=anchor.device)
    T: Tensor | None
    filling: Tensor | None = None
    if torch.equal(anchor, start_anchor):
        # A factor that is frozen in this round is the same for all to the last bit, and must stay so.
        T, own = identity, identity
        away = torch.zeros_like(anchor)
        if basis.rank < len(identity):
            own = basis.H @ basis.inverse_H
            filling = identity - own
        else:
            T = None
    else:
        U, S, Vh = torch.linalg.svd(C, full_matrices=False)
        is_kept = _LEAST_COUNTERPART * S.max() < S if len(S) else S > 0
        U, S, Vh = U[:, is_kept], S[is_kept], Vh[is_kept]
        T, own = C @ basis.inverse_H, basis.H @ (Vh.T / S) @ U.T
        if len(S) < len(identity):
            filling = identity - U @ U.T
        away = start_anchor - C @ basis.W.T
    turned = other @ own if filling is None else other @ own + start_other @ filling
    gram, gram_turned = other.T @ other, turned.T @ turned
    gram_start = start_anchor @ start_anchor.T
    missing = torch.cat([basis.H - own @ C, basis.dropped], 1)
    start_square = float(gram_start.trace())
    return _Turn(
        T,
        own,
        filling,
        distance=float(away.square().sum()) / start_square if start_square else 0.0,
        spill=_square(gram_turned, away @ away.T),
        reach=_square(gram_turned, gram_start),
        lost=_square(gram, missing @ missing.T),
        product=_square(gram, anchor @ anchor.T),
    )


@dataclass(frozen=True, eq=False)
class _RowBasis:
    """matrix = H W^T + dropped V^T with W and V orthonormal, W of k columns, and inverse_H matrix = W^T.

    Attributes:
        W: (n, k), k being the numerical rank.
        H: (rank, k).
        inverse_H: (k, rank).
        dropped: (rank, rank - k) or narrower.
    """

    W: Tensor
    H: Tensor
    inverse_H: Tensor
    dropped: Tensor

    @property
    def rank(self) -> int:
        return self.W.shape[1]


def _row_basis(matrix: Tensor) -> _RowBasis:
    """Return a basis of the rows of a matrix (rank, n) in float64.

    They are brought to norm 1 first: a row may be a million times another, and neither is rounding.
    """
    norms = matrix.norm(dim=1, keepdim=True)
    norms = torch.where(norms > 0, norms, 1.0)
    Q, R = torch.linalg.qr((matrix / norms).T)
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    is_kept = S > _LEAST_ROW
    H = norms * (Vh.T * S)
    return _RowBasis(Q @ U[:, is_kept], H[:, is_kept], (Vh[is_kept] / S[is_kept, None]) / norms.T, H[:, ~is_kept])


def _square(left: Tensor, right: Tensor) -> float:
    """Return the squared norm of a product from the Gram matrices of its factors."""
    return max(0.0, float((left * right).sum()))


def _ratio(square_above: float, square_below: float) -> float:
    return min(1.0, math.sqrt(square_above / square_below)) if square_below > 0 else 0.0
