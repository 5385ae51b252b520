"""Linear algebra on factors: small systems, best products of a given rank, and pairs for smaller ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedlora.algebra.dead_directions import brought_to_life

# Below this relative ridge a singular Gram matrix may not pass Cholesky in float64.
_LEAST_CHOLESKY_RIDGE = 1e-6
# So many times the precision of numbers is a singular value that may be nothing but their rounding.
_ROUNDING = 10


class RidgeSolver:
    """Solves X (A A^T + lambda I) = N for a fixed A; the small system is in float64.

    With N = E A^T, X is the D that minimises |E - D A|^2 + lambda |D|^2. At lambda = 0 it is that of the least norm,
    N times the pseudo-inverse of A A^T, also where the rows of A depend on each other.

    Attributes:
        scale: the mean eigenvalue of A A^T, trace / rank, unless another was given; lambda = ridge * scale.
        unseen: (rank, n), an orthonormal basis of the directions u with u^T A = 0 that X leaves at zero at lambda = 0.
    """

    def __init__(self, A: Tensor, *, ridge: float, scale: float | None = None) -> None:
        """Prepare for `A` (rank, in_features)."""
        wide, rank = A.double(), A.shape[0]
        G = wide @ wide.T
        size = float(G.trace()) / rank
        self.scale = size if scale is None else scale
        self.unseen = G[:, :0]
        if size == 0:
            self._inverse, self.unseen = torch.zeros_like(G), torch.eye(rank, dtype=G.dtype, device=G.device)
            return
        G, ridge = G / size, ridge * self.scale / size
        if ridge >= _LEAST_CHOLESKY_RIDGE:
            G.diagonal().add_(ridge)
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(G)) / size
            return
        eigenvalues, vectors = torch.linalg.eigh(G)
        is_kept = eigenvalues > rank * torch.finfo(G.dtype).eps * eigenvalues[-1]
        self._inverse = vectors * torch.where(is_kept, 1 / (size * (eigenvalues + ridge)), 0) @ vectors.T
        self.unseen = vectors[:, ~is_kept]

    def solve(self, N: Tensor) -> Tensor:
        """Return X (n, rank) for N (n, rank), in the dtype of N. Of a chain of products, give the smallest to it."""
        return (N.double() @ self._inverse).to(N.dtype)


def best_product(left: Tensor, right: Tensor, rank: int, *, precision: float | None = None) -> tuple[Tensor, Tensor]:
    """Return the A (rank, in_features), B (out_features, rank) whose product is closest to left @ right, balanced.

    B A is the truncated singular value decomposition U S V^T, B = U sqrt(S), A = sqrt(S) V^T. It is found from thin
    QR decompositions of both factors and the singular values of the small core between them, without the product,
    unless the factors are no thinner than it. Where `rank` is more than the product has, the rest is zero: a singular
    value that is rounding has no direction of its own, and its root would look like one.

    Args:
        left: (out_features, n).
        right: (n, in_features).
        precision: of the factors, relative to the largest singular value; that of their type if None.
    """
    U, S, Vh = _singular_values(left, right)
    least = _ROUNDING * (torch.finfo(S.dtype).eps if precision is None else precision)
    kept = int((S[:rank] > least * S[:1]).sum())
    root = S[:kept].sqrt()
    A, B = root[:, None] * Vh(kept), U(kept) * root
    if kept == rank:
        return A, B
    return torch.cat([A, A.new_zeros(rank - kept, A.shape[1])]), torch.cat([B, B.new_zeros(B.shape[0], rank - kept)], 1)


def recompressed(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product of its numerical rank, which is at most min(out_features, in_features).

    Args:
        left: (out_features, n).
        right: (n, in_features).
    """
    U, S, Vh = _singular_values(left, right)
    rank = int((S[0] * torch.finfo(S.dtype).eps < S).sum()) if len(S) else 0
    root = S[:rank].sqrt()
    return U(rank) * root, root[:, None] * Vh(rank)


def aligned(A: Tensor, B: Tensor, *, to: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair of the same product, T A and B T^T with T orthogonal, whose A is nearest to `to`.

    This is the orthogonal Procrustes problem: T = X Y^T from the singular vectors of to @ A^T, (rank, rank). Where the
    last rows of A and columns of B are zero, the others go to those rows of `to` that they have most in common with,
    and are turned among these; the rest stays zero, exactly, so that something else can be put there.
    """
    rank = len(A)
    num_live = rank - int((~(A.any(1) | B.any(0))).flip(0).cumprod(0).sum())
    if not num_live:
        return A, B
    X, _, Yh = torch.linalg.svd(to @ A[:num_live].T, full_matrices=False)
    turn = X @ Yh
    if num_live == rank:
        return turn @ A, B @ turn.T
    rows = turn.norm(dim=1).sort(descending=True, stable=True).indices[:num_live].sort().values
    own_A, own_B = aligned(A[:num_live], B[:, :num_live], to=to[rows])
    return torch.zeros_like(A).index_copy(0, rows, own_A), torch.zeros_like(B).index_copy(1, rows, own_B)


def truncated(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first `rank` rows of A and columns of B; where A and B are zero in one direction, A is made alive."""
    cut = A[:rank], B[:, :rank]
    return brought_to_life(*cut, like=cut, spare=A)


def projected(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the first `rank` rows of A, and the B that brings their product closest to B A: never worse than to cut.

    B A = B[:, :rank] A[:rank] + B[:, rank:] A[rank:], and only the second part needs to be projected. Where both
    factors are zero in one direction, A is made alive.
    """
    kept, rest = A[:rank], A[rank:]
    solved = B[:, :rank] + B[:, rank:] @ RidgeSolver(kept, ridge=0.0).solve(rest @ kept.T)
    return brought_to_life(kept, solved, like=(kept, solved), spare=A)


def with_identity(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix (out_features, in_features) as a product of itself and an identity, on its smaller side."""
    size = min(matrix.shape)
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    return (identity, matrix) if matrix.shape[0] == size else (matrix, identity)


def _singular_values(left: Tensor, right: Tensor) -> tuple[Callable[[int], Tensor], Tensor, Callable[[int], Tensor]]:
    """Return U(n), S, Vh(n) of left @ right: all singular values, and functions that give the first n vectors."""
    if left.shape[1] >= min(left.shape[0], right.shape[1]):
        U, S, Vh = torch.linalg.svd(left @ right, full_matrices=False)
        return (lambda n: U[:, :n]), S, (lambda n: Vh[:n])
    left_reflectors, left_tau = torch.geqrf(left)
    right_reflectors, right_tau = torch.geqrf(right.T.contiguous())
    n = left.shape[1]
    core = left_reflectors[:n].triu() @ right_reflectors[:n].triu().T
    U, S, Vh = torch.linalg.svd(core)

    def expanded(reflectors: Tensor, tau: Tensor, vectors: Tensor) -> Tensor:
        # Applying the reflections costs a tenth of writing the orthogonal factor out.
        padded = vectors.new_zeros(reflectors.shape[0], vectors.shape[1])
        padded[: vectors.shape[0]] = vectors
        return torch.ormqr(reflectors, tau, padded)

    return (
        (lambda n: expanded(left_reflectors, left_tau, U[:, :n])),
        S,
        (lambda n: expanded(right_reflectors, right_tau, Vh[:n].T).T),
    )


def random_directions(like: Tensor, num: int) -> Tensor:
    """Return Gaussian directions (in_features, num) from a fixed seed, for `like` (rank, in_features)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(like.shape[1], num, generator=generator, dtype=torch.float64)
    return drawn.to(like)


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis (n, at most m) of the span of the columns (n, m)."""
    Q: Tensor = torch.linalg.qr(columns).Q
    return Q
