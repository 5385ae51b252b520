"""How far a round's result is from the ideal update, measured on the factors.

With M = sum_i p_i B_i A_i = mean_B mean_A + P Q the ideal update, (A', B') the method's pair and
C D its change of the base weights, everything asked for is a norm of L X R with

    L = [mean_B, P, dB, C],    R = [mean_A; Q; dA; D],    dA = A' - mean_A,  dB = B' - mean_B

and a small X; the residual, for one, is M - B' A' - C D = P Q - dB mean_A - mean_B dA - dB dA - C D.
|L X R|^2 needs only the Gram matrices L^T L and R R^T. They are taken in float64, and of the
deviations rather than of the clients' own factors: where clients are close, the errors are small
differences of large products, which are lost otherwise.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fedlora.aggregation.updates import CentredUpdate
from fedlora.algebra.low_rank import with_identity
from fedlora.common.aggregation_report import AggregationReport, LayerReport, ServerStep
from fedlora.methods import Combined


@dataclass(frozen=True)
class LayerSquares:
    """Squared Frobenius norms of one layer; those of products with the layer's scaling, those of factors without.

    Attributes:
        update: |M|^2.
        before, after: |E|^2, |R|^2.
        floor: of M without its largest `rank` singular values.
        best_B, best_A: of E without what lies in the row space of mean_A, the column space of mean_B.
        mean_B, mean_A: of the means.
        dB, dA: of how far the method moved from them.
    """

    update: float
    before: float
    after: float
    floor: float
    best_B: float
    best_A: float
    mean_B: float
    mean_A: float
    dB: float
    dA: float


@dataclass(frozen=True)
class Measured:
    """One layer's norms, and what does not add up over layers."""

    squares: LayerSquares
    cosine_B: float
    cosine_A: float
    effective_rank: float
    note: str


def measure_layer(update: CentredUpdate, combined: Combined, *, scaling: float) -> Measured:
    """Return the norms that judge one layer's result.

    It takes the memory of all clients' pairs in float64, or of the layer's weight where that is less.
    """
    error = _error(update)
    mean_A, mean_B = update.mean_A.double(), update.mean_B.double()
    dA, dB = combined.A.double() - mean_A, combined.B.double() - mean_B
    lefts, rights = [mean_B, error[0].double(), dB], [mean_A, error[1].double(), dA]
    if combined.base_change is not None:
        C, D = _compact(*combined.base_change)
        lefts.append(C.double())
        rights.append(D.double())
    L, R = torch.cat(lefts, 1), torch.cat(rights)
    gram_L, gram_R = L.T @ L, R @ R.T
    rank, num_errors = mean_A.shape[0], error[0].shape[1]
    m, e = slice(0, rank), slice(rank, rank + num_errors)
    c = slice(e.stop, e.stop + rank)

    X = torch.zeros_like(gram_L)
    X.diagonal()[e] = 1
    X.diagonal()[c.start :] = -1
    X[c, m] = X[m, c] = -torch.eye(rank, dtype=X.dtype, device=X.device)
    before = float((gram_L[e, e] * gram_R[e, e]).sum())
    update_square = float((gram_L[: c.start, : c.start] * gram_R[: c.start, : c.start]).sum())
    singular_squares = _singular_squares(gram_L[: c.start, : c.start], gram_R[: c.start, : c.start])
    in_rows = float((gram_L[e, e] * _projected(gram_R, e, m)).sum())
    in_columns = float((gram_R[e, e] * _projected(gram_L, e, m)).sum())
    weight = scaling**2
    squares = LayerSquares(
        # Rounding may leave a sum that should be zero a little below it.
        update=weight * max(0.0, update_square),
        before=weight * before,
        after=weight * max(0.0, float((gram_L * (X @ gram_R @ X.T)).sum())),
        floor=weight * min(before, float(singular_squares[:-rank].sum())),
        best_B=weight * max(0.0, before - in_rows),
        best_A=weight * max(0.0, before - in_columns),
        mean_B=float(gram_L[m, m].trace()),
        mean_A=float(gram_R[m, m].trace()),
        dB=float(gram_L[c, c].trace()),
        dA=float(gram_R[c, c].trace()),
    )
    cosine_B, cosine_A = _cosine(gram_L, m, c), _cosine(gram_R, m, c)
    return Measured(squares, cosine_B, cosine_A, _effective_rank(singular_squares), combined.note)


def summarise(
    method: str,
    layers: Mapping[str, Measured],
    *,
    notes: tuple[str, ...] = (),
    server_step: ServerStep | None = None,
) -> AggregationReport:
    """Return the report of a round from its layers' squared norms."""
    total = _total(measured.squares for measured in layers.values())
    return AggregationReport(
        method=method,
        **_ratios(total),
        layers={path: _layer_report(measured) for path, measured in layers.items()},
        notes=notes,
        server_step=server_step,
    )


def _layer_report(measured: Measured) -> LayerReport:
    return LayerReport(
        update_norm=math.sqrt(measured.squares.update),
        **_ratios(measured.squares),
        cosine_B=measured.cosine_B,
        cosine_A=measured.cosine_A,
        effective_rank=measured.effective_rank,
        note=measured.note,
    )


def _ratios(squares: LayerSquares) -> dict[str, float]:
    return {
        "error_before": _ratio(squares.before, squares.update),
        "error_after": _ratio(squares.after, squares.update),
        "floor": _ratio(squares.floor, squares.update),
        "reach_B": _share(squares.best_B, squares.before),
        "reach_A": _share(squares.best_A, squares.before),
        "reach_both": _share(squares.floor, squares.before),
        "moved_B": _ratio(squares.dB, squares.mean_B),
        "moved_A": _ratio(squares.dA, squares.mean_A),
    }


def _total(layers: Iterable[LayerSquares]) -> LayerSquares:
    layers = list(layers)
    return LayerSquares(
        *(math.fsum(getattr(squares, field.name) for squares in layers) for field in fields(LayerSquares))
    )


def _ratio(square_above: float, square_below: float) -> float:
    if square_below == 0:
        return 0.0 if square_above == 0 else math.inf
    return math.sqrt(square_above / square_below)


def _share(square_left: float, square_before: float) -> float:
    """Return which share of an error is gone where so much of its square is left."""
    return 1 - min(1.0, math.sqrt(square_left / square_before)) if square_before > 0 else 0.0


def _error(update: CentredUpdate) -> tuple[Tensor, Tensor]:
    """Return E in factors, (out_features, n) and (n, in_features), n being at most the smaller of the two."""
    if sum(update.ranks) <= min(update.mean_B.shape[0], update.mean_A.shape[1]):
        return update.stacked_deviations()
    E = update.mean_B.new_zeros(update.mean_B.shape[0], update.mean_A.shape[1])
    for weight, dA, dB in update.deviations():
        E.addmm_(dB, dA, alpha=weight)
    return with_identity(E)


def _compact(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if left.shape[1] <= min(left.shape[0], right.shape[1]):
        return left, right
    return with_identity(left @ right)


def _singular_squares(gram_left: Tensor, gram_right: Tensor) -> Tensor:
    """Return the squared singular values of left @ right, ascending, from the Gram matrices of its factors."""
    eigenvalues, vectors = torch.linalg.eigh(gram_left)
    root = vectors * eigenvalues.clamp_min(0).sqrt()
    squares: Tensor = torch.linalg.eigvalsh(root.T @ gram_right @ root)
    return squares.clamp_min(0)


def _projected(gram: Tensor, rows: slice, on: slice) -> Tensor:
    """Return the Gram matrix of `rows` after their projection on the span of `on`."""
    inner = gram[rows, on]
    inverse: Tensor = torch.linalg.pinv(gram[on, on], hermitian=True, rtol=1e-13)
    return inner @ inverse @ inner.T


def _cosine(gram: Tensor, mean: slice, moved: slice) -> float:
    """Return the cosine between a mean and itself plus its movement."""
    mean_square, moved_square = float(gram[mean, mean].trace()), float(gram[moved, moved].trace())
    inner = float(gram[mean, moved].trace())
    length = math.sqrt(max(0.0, mean_square * (mean_square + 2 * inner + moved_square)))
    if moved_square == 0:
        return 1.0
    return max(-1.0, min(1.0, (mean_square + inner) / length)) if length > 0 else 0.0


def _effective_rank(singular_squares: Tensor) -> float:
    values = singular_squares.sqrt()
    total = float(values.sum())
    if total == 0 or not math.isfinite(total):
        return 0.0
    shares = values[values > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))
