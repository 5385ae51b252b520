"""LoRA-FAIR: A is averaged, and the mean of B is corrected so that B A comes close to the mean of the products.

Bian, Wang, Zhang, Xu: "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization
Refinement", ICCV 2025, arXiv 2411.14961. Clients start the next round from exactly the pair returned
here, the paper's "Avg-Initial"; the base weights never change.

We depart from the paper in how dB is found. The paper minimises S(M, (mean_B + dB) mean_A) +
lambda |dB|, S being the cosine similarity, by 1000 steps of SGD. We minimise a distance in its place:

    |M - (mean_B + dB) mean_A|^2 + lambda |dB|^2,    M = sum_i p_i B_i A_i,

because the cosine cannot see that averaging shrinks the product when clients disagree, because this
minimum is known in closed form (the published SGD covers a third to a half of the way to its own;
the penalty is squared for the closed form), and because the product's error can then only fall.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlora.aggregation.method import CentredUpdate

# Below this relative ridge a singular Gram matrix may not pass Cholesky in float64.
_LEAST_CHOLESKY_RIDGE = 1e-6


@dataclass(frozen=True)
class LoraFair:
    """The mean of A, and the mean of B corrected by ridge regression.

    Attributes:
        ridge: lambda relative to the mean eigenvalue of G = mean_A mean_A^T, that is lambda = ridge *
            trace(G) / rank; the same number therefore means the same at every layer and every size of
            A. The paper's lambda of 0.01 at PEFT's initialisation is 0.03. At 0 the result is M
            projected on the row space of mean_A; towards infinity it is FedIT.

    Raises:
        ValueError: `ridge` is negative or not finite.
    """

    name: ClassVar[str] = "lora_fair"
    ridge: float = 0.03

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ridge) and self.ridge >= 0):
            raise ValueError(f"ridge is {self.ridge}; expected a finite number that is not negative")

    def combine(self, update: CentredUpdate) -> tuple[Tensor, Tensor]:
        """Return A = mean_A (rank, in_features) and B = mean_B + dB (out_features, rank), B in float64.

        Setting the objective's gradient to zero gives dB = E mean_A^T (G + lambda I)^-1, where
        E = M - mean_B mean_A = P Q. With Q mean_A^T first, that takes (K + 1) rank^2 (in_features +
        out_features) multiplications and no matrix larger than P or Q. B is float64 because dB may be
        smaller than a float32 step of mean_B; float32 is for the caller to choose.
        """
        A = update.mean_A.double()
        N = update.P @ (update.Q @ update.mean_A.T)
        return update.mean_A, update.mean_B + _solve_ridge(N.double(), A @ A.T, ridge=self.ridge)


def _solve_ridge(N: Tensor, G: Tensor, *, ridge: float) -> Tensor:
    """Return N (G + ridge * trace(G) / rank * I)^-1, (out_features, rank).

    Args:
        N: (out_features, rank), float64, its rows in the row space of G.
        G: (rank, rank), float64, symmetric and not negative; it may be singular.
        ridge: relative to the mean eigenvalue of G.
    """
    rank = G.shape[0]
    mean_eigenvalue = G.trace() / rank
    if mean_eigenvalue == 0:
        return torch.zeros_like(N)
    G = G / mean_eigenvalue
    if ridge >= _LEAST_CHOLESKY_RIDGE:
        factor = torch.linalg.cholesky(G + ridge * torch.eye(rank, dtype=G.dtype, device=G.device))
        return torch.cholesky_solve(N.T, factor).T / mean_eigenvalue
    eigenvalues, vectors = torch.linalg.eigh(G)
    is_kept = eigenvalues > rank * torch.finfo(G.dtype).eps * eigenvalues[-1]
    inverses = torch.where(is_kept, 1 / (eigenvalues + ridge), 0)
    solution: Tensor = ((N @ vectors) * inverses) @ vectors.T / mean_eigenvalue
    return solution
