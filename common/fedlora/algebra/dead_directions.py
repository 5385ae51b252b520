"""Directions of a pair that no training can move, and how they come to life without any change of the product.

A direction u (rank,) is dead where u^T A = 0 and B u = 0. The gradients of A and B are s B^T G and s G A^T, G being
that of the weight: along u both vanish, in every step, and the pair trains as if its rank were smaller. Where one
factor has something there, the other learns; so one of them gets a direction, and the other stays zero.
"""

import math

import torch
from torch import Tensor

# Of a factor's norm. float32 leaves about a tenth of it where nothing should be left.
_LEAST = 1e-6
# Of the other rows' size: with less, a direction would learn much slower than they do.
_WEAK = 0.1
# What is drawn counts only where no given row has anything left.
_DRAWN = 1e-3


def dead_directions(A: Tensor, B: Tensor) -> Tensor:
    """Return an orthonormal basis (rank, n) in float64 of the directions that are dead in both factors.

    Rows of A that are zero beside a zero column of B are in it as they are, as unit vectors.

    Args:
        A: (rank, in_features).
        B: (out_features, rank).
    """
    factors = [_of_size_one(A.double()), _of_size_one(B.T.double())]
    is_empty = ~(factors[0].any(1) | factors[1].any(1))
    identity = torch.eye(A.shape[0], dtype=torch.float64, device=A.device)
    filled = [factor[~is_empty] for factor in factors]
    if not len(filled[0]):
        return identity
    values, vectors = torch.linalg.eigh(sum(rows @ rows.T for rows in filled))
    return torch.cat([identity[:, is_empty], identity[:, ~is_empty] @ vectors[:, values < _LEAST**2]], 1)


def brought_to_life(
    A: Tensor, B: Tensor, *, like: tuple[Tensor, Tensor], spare: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the pair of the same product with no direction dead in both factors; as it is where there is none.

    A dead direction gets in A what `like` has there beyond the live rows of A, and zero in B; or the other way round
    where only the B of `like` has something, as in an embedding, whose A starts at zero. It has the size that it has
    in `like`, from where the clients have come: the learning rate was chosen for rows of that size, and how large the
    live rows are says how much has been learned so far, nothing about the rest. Of what `like` lacks, the rows of
    `spare` that have most left are taken, and then drawn ones, from a fixed seed, all in the mean size of the rows of
    `like`, or 1, and none much smaller than the live rows.

    Args:
        A: (rank, in_features).
        B: (out_features, rank).
        like: a pair of these shapes, what the clients have or had.
        spare: further rows (n, in_features).
    """
    A, B = _filled(A, B, like=like, spare=spare)
    if A.shape[0] <= A.shape[1]:
        return A, B
    # More than in_features independent rows A cannot have; what is left over is for B.
    turned_B, turned_A = _filled(B.T, A.T, like=(like[1].T, like[0].T), spare=None)
    return turned_A.T, turned_B.T


def _filled(A: Tensor, B: Tensor, *, like: tuple[Tensor, Tensor], spare: Tensor | None) -> tuple[Tensor, Tensor]:
    dead = dead_directions(A, B)
    if not dead.shape[1]:
        return A, B
    # What rounding has left there goes, or else it would be multiplied by what comes.
    wide_A, wide_B = A.double(), B.double()
    wide_A, wide_B = wide_A - dead @ (dead.T @ wide_A), wide_B - (wide_B @ dead) @ dead.T
    like_A, like_B = like[0].double(), like[1].T.double()
    rows_A, rows_B = _beyond(dead.T @ like_A, wide_A), _beyond(dead.T @ like_B, wide_B.T)
    num_live = len(A) - dead.shape[1]
    size_A, size_B = _size(like_A, wide_A, num_live), _size(like_B, wide_B, num_live)
    if _is_strong(rows_B, size=size_B) and not _is_strong(rows_A, size=size_A):
        return wide_A.to(A.dtype), (wide_B + (dead @ rows_B).T).to(B.dtype)
    room = min(dead.shape[1], A.shape[1])
    pool = like_A if spare is None else torch.cat([like_A, spare.double()])
    rows = _strengthened(rows_A[:room], live=wide_A, pool=pool, size=size_A)
    return (wide_A + dead[:, :room] @ rows).to(A.dtype), wide_B.to(B.dtype)


def _of_size_one(rows: Tensor) -> Tensor:
    """Return the rows over their norm, of which no square overflows; zero stays zero."""
    largest = rows.abs().max()
    if largest == 0:
        return rows
    rows = rows / largest
    found: Tensor = rows / torch.linalg.vector_norm(rows)
    return found


def _size(like: Tensor, live: Tensor, num_live: int) -> float:
    """Return the mean size of the rows of `like`, or a share of that of the live ones where these are much larger."""
    size = float(torch.linalg.vector_norm(like)) / math.sqrt(len(like))
    return max(size, _WEAK * float(torch.linalg.vector_norm(live)) / math.sqrt(max(1, num_live)))


def _is_strong(rows: Tensor, *, size: float) -> bool:
    """Return whether the rows are independent, and none much weaker than `size`."""
    return size > 0 and rows.shape[0] <= rows.shape[1] and bool(torch.linalg.svdvals(rows)[-1] > _WEAK * size)


def _beyond(rows: Tensor, live: Tensor) -> Tensor:
    """Return the part of the rows that is orthogonal to the live rows; the rows where these leave no room for it."""
    basis = _row_basis(live)
    if len(basis) + len(rows) > rows.shape[1]:
        return rows
    return rows - rows @ basis.T @ basis


def _strengthened(rows: Tensor, *, live: Tensor, pool: Tensor, size: float) -> Tensor:
    """Return the rows (n, in_features), those combinations of them that are weak replaced by others of `size`.

    Args:
        live: what the others should be orthogonal to, where there is room.
        pool: where they are looked for first (any, in_features).
    """
    if _is_strong(rows, size=size):
        return rows
    size = size or 1.0
    U, values, Vh = torch.linalg.svd(rows, full_matrices=False)
    is_weak = values <= _WEAK * size
    kept = torch.cat([_row_basis(live), Vh[~is_weak]])
    if len(kept) + int(is_weak.sum()) > rows.shape[1]:
        kept = Vh[~is_weak]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(kept) + len(rows), rows.shape[1], dtype=torch.float64, generator=generator).to(rows.device)
    pool = torch.cat([_of_size_one(pool), _DRAWN * _of_size_one(drawn)])
    basis = _row_basis(kept)
    for _ in range(2):  # Of what is almost within the basis the first projection leaves little but rounding.
        pool = pool - pool @ basis.T @ basis
    others = torch.linalg.svd(pool, full_matrices=False).Vh[: int(is_weak.sum())]
    values, Vh = torch.where(is_weak, size, values), Vh.clone()
    Vh[is_weak] = others
    found: Tensor = U * values @ Vh
    return found


def _row_basis(rows: Tensor) -> Tensor:
    """Return an orthonormal basis (n, in_features) of the span of the rows."""
    Vh: Tensor
    _, values, Vh = torch.linalg.svd(rows, full_matrices=False)
    return Vh[values > _LEAST * values.max()] if len(values) else Vh
