"""The change of the base weights since the run's start: cumulative, in factors or dense, whichever is smaller."""

from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from fedlora.adapters import LoraLayer
from fedlora.adapters.dense_change import dense_of, dense_pair
from fedlora.algebra.low_rank import aligned, best_product, recompressed


def accumulated(before: LoraLayer | None, added: LoraLayer, *, rank: int | None = None) -> LoraLayer:
    """Return the sum of two changes of one layer's weight, both with scaling 1.

    The factors are set side by side, without any error, until they take more memory than the weight itself, from
    rank in_features * out_features / (in_features + out_features) on. Then they are written anew with their numerical
    rank, and where that takes as much, the sum becomes one dense matrix (`dense_change`), which grows no further.

    Args:
        rank: the most rank of the sum: beyond it, it is replaced by the best of that rank. It has no effect where
            factors of that rank would take as much as the dense sum, which is exact.
    """
    most = _rank_of_weight(added)
    if bounds(rank, added):
        total = _side_by_side(before, added)
        return total if total.rank <= rank else _cut(total, rank, before=before)
    known = None if before is None else dense_of(before)
    if known is not None:
        return dense_pair(torch.addmm(known.to(added.B), added.B, added.A), is_embedding=added.is_embedding)
    total = _side_by_side(before, added)
    if total.rank <= most:
        return total
    B, A = recompressed(total.B, total.A)
    if len(A) < most:
        return replace(total, A=A, B=B)
    return dense_pair(total.B @ total.A, is_embedding=added.is_embedding)


def bounds(rank: int | None, change: LoraLayer) -> TypeGuard[int]:
    """Return whether a change of that weight is cut to `rank`: factors of it take less memory than the weight."""
    return rank is not None and rank < _rank_of_weight(change)


def difference(before: LoraLayer | None, after: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return by what a change has changed, in factors (out_features, n) and (n, in_features)."""
    if before is None:
        return after.B, after.A
    return torch.cat([after.B, -before.B.to(after.B)], 1), torch.cat([after.A, before.A.to(after.A)])


def _rank_of_weight(change: LoraLayer) -> float:
    """Return the rank of which two factors take as much memory as the weight."""
    in_features, out_features = change.A.shape[1], change.B.shape[0]
    return in_features * out_features / (in_features + out_features)


def _side_by_side(before: LoraLayer | None, added: LoraLayer) -> LoraLayer:
    if before is None:
        return added
    A, B = torch.cat([before.A.to(added.A), added.A]), torch.cat([before.B.to(added.B), added.B], 1)
    return replace(added, A=A, B=B)


def _cut(total: LoraLayer, rank: int, *, before: LoraLayer | None) -> LoraLayer:
    """Return the best change of that rank, or the change itself where its numerical rank is less.

    It is found in float64: what one rounds, the next round cannot bring back. And it is turned towards the change
    before, so that what travels, the difference of the two, is as small as it can be.
    """
    A, B = best_product(total.B.double(), total.A.double(), rank)
    if before is not None and before.rank == rank:
        A, B = aligned(A, B, to=before.A.to(A))
    is_used = A.any(1) & B.any(0)
    return replace(total, A=A[is_used].to(total.A.dtype), B=B[:, is_used].to(total.B.dtype))
