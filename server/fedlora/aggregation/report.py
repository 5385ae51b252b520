"""How far a round's result is from the ideal update, measured on the factors.

With M = sum_i p_i B_i A_i the ideal update and (A', B') the method's pair, the residual is

    R = M - B' A' = E - S,    E = P Q,    S = dB mean_A + B' dA,    dA = A' - mean_A,  dB = B' - mean_B,

for any method. Each part is small where the clients are close or the correction is, so that norms
from Gram matrices keep their digits, where those of M and B' A' apart would lose them all.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.aggregation.method import CentredUpdate
from fedlora.common.aggregation_report import AggregationReport, LayerReport

# Columns of a Gram matrix at a time: wide enough for fast products, and K * rank columns need not be square in memory.
_GRAM_BLOCK = 64


@dataclass(frozen=True)
class LayerSquares:
    """Squared Frobenius norms of one layer: M, E and R with the layer's scaling, dB and mean_B without."""

    update: float
    before: float
    after: float
    correction: float
    mean_B: float


def measure_layer(update: CentredUpdate, A: Tensor, B: Tensor, *, scaling: float) -> LayerSquares:
    """Return the squared norms that judge the pair A (rank, in_features), B (out_features, rank)."""
    dtype, mean_A, mean_B = update.P.dtype, update.mean_A, update.mean_B
    delta_A, delta_B = (A - mean_A).to(dtype), (B - mean_B).to(dtype)
    shift_left, shift_right = torch.cat([delta_B, B.to(dtype)], 1), torch.cat([mean_A, delta_A])
    error = _squared_norm(update.P, update.Q)
    mean_with_error = _inner(mean_B, mean_A, update.P, update.Q)
    shift_with_error = _inner(shift_left, shift_right, update.P, update.Q)
    squares = (
        error + 2 * mean_with_error + _squared_norm(mean_B, mean_A),
        error,
        error - 2 * shift_with_error + _squared_norm(shift_left, shift_right),
    )
    # Rounding may leave a sum that should be zero a little below it.
    update_square, before, after = (scaling**2 * max(square, 0.0) for square in squares)
    return LayerSquares(update_square, before, after, _sum_of_squares(delta_B), _sum_of_squares(mean_B))


def summarise(method: str, layers: Mapping[str, LayerSquares]) -> AggregationReport:
    """Return the report of a round from its layers' squared norms."""
    overall = _total(layers.values())
    return AggregationReport(
        method=method,
        error_before=_ratio(overall.before, overall.update),
        error_after=_ratio(overall.after, overall.update),
        correction=_ratio(overall.correction, overall.mean_B),
        layers={path: _layer_report(squares) for path, squares in layers.items()},
    )


def _layer_report(squares: LayerSquares) -> LayerReport:
    return LayerReport(
        update_norm=math.sqrt(squares.update),
        error_before=_ratio(squares.before, squares.update),
        error_after=_ratio(squares.after, squares.update),
        correction=_ratio(squares.correction, squares.mean_B),
    )


def _total(layers: Iterable[LayerSquares]) -> LayerSquares:
    rows = [(s.update, s.before, s.after, s.correction, s.mean_B) for s in layers]
    return (
        LayerSquares(*(math.fsum(column) for column in zip(*rows, strict=True))) if rows else LayerSquares(*[0.0] * 5)
    )


def _ratio(square_above: float, square_below: float) -> float:
    if square_below == 0:
        return 0.0 if square_above == 0 else math.inf
    return math.sqrt(square_above / square_below)


def _inner(P: Tensor, Q: Tensor, X: Tensor, Y: Tensor) -> float:
    """Return <P Q, X Y>, the sum over (P^T X) * (Q Y^T): neither product is formed."""
    return float(((P.T @ X).double() * (Q @ Y.T).double()).sum())


def _squared_norm(P: Tensor, Q: Tensor) -> float:
    """Return |P Q|^2, the sum over (P^T P) * (Q Q^T), of which only the upper half is computed."""
    total = 0.0
    for start in range(0, P.shape[1], _GRAM_BLOCK):
        block = slice(start, start + _GRAM_BLOCK)
        product = (P[:, block].T @ P[:, start:]).double() * (Q[block] @ Q[start:].T).double()
        total += float(2 * product.sum() - product[:, :_GRAM_BLOCK].sum())
    return total


def _sum_of_squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
