"""A step of what a pair does, B A, in place of A and of B: the same in every gauge, and never formed.

With X = B A after the method, X_0 at the round's start, and M the first moment of earlier rounds' changes,

    M' = kept M + fresh (X - X_0),    X' = X_0 + gain M' = (1 - g) X_0 + g X + gain kept M,    g = gain fresh,

are factors set side by side, of at most four times the pair's rank r, which thin QR decompositions cut: X' to the best
of rank r, and M' to the best of rank 2 r. That is the rank of one round's change, X - X_0: the first is kept whole, and
what goes of later ones is the smallest part of a sum in which the older ones have faded by `kept`.

The pair of X' could be split in any gauge. It is the one whose A is closest to the method's, as far as no direction of
A gets small beside the others: clients go on from factors that they know, and a step that adds nothing changes nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.algebra.dead_directions import brought_to_life
from fedlora.algebra.gram import product_square
from fedlora.algebra.low_rank import best_product

# Of the mean size of A's rows: a direction with less would learn much slower than the others.
_WEAK = 0.1

# A (n, in_features) and B (out_features, n).
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Step:
    """How a product steps: see above."""

    kept: float
    fresh: float
    gain: float


def product_step(pair: Pair, start: Pair, moment: Pair | None, step: Step) -> tuple[Pair, Pair]:
    """Return the pair after the step, of the method's rank, and M', of at most twice that.

    Args:
        pair: the method's.
        start: that of the round's start, of the same shapes.
        moment: M; None before the first round.
    """
    rank, precision = len(pair[0]), torch.finfo(pair[0].dtype).eps
    A, B = pair[0].double(), pair[1].double()
    A_0, B_0 = start[0].to(A), start[1].to(A)
    M_A, M_B = (A[:0], B[:, :0]) if moment is None else (moment[0].to(A), step.kept * moment[1].to(A))
    new_M = best_product(
        torch.cat([step.fresh * (B - B_0), step.fresh * B_0, M_B], 1),
        torch.cat([A, A - A_0, M_A]),
        2 * rank,
        precision=precision,
    )
    is_used = new_M[0].any(1)
    found = new_M[0][is_used].to(pair[0]), new_M[1][:, is_used].to(pair[1])
    gain = step.gain * step.fresh
    if gain == 1 and not M_B.any():
        return pair, found
    left, right = torch.cat([(1 - gain) * B_0, gain * B, step.gain * M_B], 1), torch.cat([A_0, A, M_A])
    near = _split_near(best_product(left, right, rank, precision=precision), A)
    new_A, new_B = brought_to_life(*near, like=(A, B), spare=A_0)
    return (new_A.to(pair[0]), new_B.to(pair[1])), found


def change_square(pair: Pair, start: Pair) -> float:
    """Return |B A - B_0 A_0|^2, from differences that are taken before anything is multiplied."""
    A, B = pair[0].double(), pair[1].double()
    A_0, B_0 = start[0].to(A), start[1].to(A)
    return max(0.0, product_square(torch.cat([B - B_0, B_0], 1), torch.cat([A, A - A_0])))


def _split_near(pair: Pair, to: Tensor) -> Pair:
    """Return a pair of the same product whose A is nearest to `to` of all with these rows, none of them weak.

    With V an orthonormal basis of the rows of A, the nearest is T V^T with T = to V. Singular values of T that are
    small beside the rows of `to` are raised, because B has T^-1. Where the last rows of A and columns of B are zero,
    the product has fewer directions, and so has what is returned.
    """
    A, B = pair
    sizes = A.norm(dim=1)
    sizes = sizes[sizes > 0]
    num_live = len(sizes)
    V = (A[:num_live] / sizes[:, None]).T
    U, S, Wh = torch.linalg.svd(to @ V, full_matrices=False)
    least = _WEAK * float(torch.linalg.vector_norm(to)) / len(to) ** 0.5
    if not least:
        return pair
    S = S.clamp_min(least)
    return U * S @ Wh @ V.T, B[:, :num_live] * sizes @ (Wh.T / S) @ U.T
