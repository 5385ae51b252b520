"""LoRA-FAIR with both factors corrected: B and A in turn, each by the ridge regression of `lora_fair`.

Ours, after Bian et al. (arXiv 2411.14961). The objective

    |M - B A|^2 + lambda_B |B - mean_B|^2 + lambda_A |A - mean_A|^2

never rises. Two sweeps come to within some percent of the best product of this rank, and stay near
the means. A smaller error is not yet a better model: the paper's own ablation with both factors,
which solved it otherwise, was worse than with B alone.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedlora.common.section import Count, NonNegative
from fedlora.methods.method import ClientPair, Combined, Layer, Method, Phases, Product

if TYPE_CHECKING:
    from torch import Tensor

    from fedlora.algebra.low_rank import RidgeSolver


class LoraFairTwoSided(Method):
    """Both means, corrected in turn.

    Attributes:
        ridge: lambda_B relative to the mean eigenvalue of mean_A mean_A^T, and lambda_A to that of mean_B^T mean_B.
        sweeps: how many times B and then A are corrected.
    """

    name: ClassVar[str] = "lora_fair_two_sided"
    title: ClassVar[str] = "two-sided LoRA-FAIR"
    summary: ClassVar[str] = "both means corrected in turn"

    ridge: NonNegative = Field(
        0.03, description="lambda, for both factors, relative to the mean eigenvalue of A A^T and of B^T B"
    )
    sweeps: Count = Field(2, description="how many times B and then A are corrected")

    def combine(self, layer: Layer) -> Phases:
        """Return A = mean_A + dA (rank, in_features) and B = mean_B + dB (out_features, rank).

        M - mean_B A = E - mean_B dA and M - B mean_A = E - dB mean_A: each step solves for the whole
        correction from the means, of which both are small where clients are close. A half sweep is one phase.
        """
        import torch

        from fedlora.algebra.low_rank import RidgeSolver

        mean_A, mean_B = layer.mean_A, layer.mean_B
        A, B, dA = mean_A, mean_B, torch.zeros_like(mean_A)
        # Both penalties stay what they are at the means, or the objective would change from sweep to sweep.
        scale_B = RidgeSolver(mean_A, ridge=self.ridge).scale
        scale_A = RidgeSolver(mean_B.T, ridge=self.ridge).scale
        for sweep in range(self.sweeps):
            ridge_B = RidgeSolver(A, ridge=self.ridge, scale=scale_B)
            dB = yield partial(_corrected_B, A=A, ridge=ridge_B)
            if sweep > 0:
                dB = dB - mean_B @ ridge_B.solve(dA @ A.T)
            B = mean_B + dB
            ridge_A = RidgeSolver(B.T, ridge=self.ridge, scale=scale_A)
            dA = yield partial(_corrected_A, B=B, ridge=ridge_A)
            dA = dA - ridge_A.solve(dB.T @ B).T @ mean_A
            A = mean_A + dA
        return Combined(A, B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A, and B solved again for them."""
        from fedlora.algebra.low_rank import projected

        return projected(A, B, rank)


def _corrected_B(client: ClientPair, *, A: Tensor, ridge: RidgeSolver) -> Product:
    """Return a client's part of E A^T (A A^T + lambda I)^-1."""
    return Product(client.dB, ridge.solve(client.dA @ A.T))


def _corrected_A(client: ClientPair, *, B: Tensor, ridge: RidgeSolver) -> Product:
    """Return a client's part of (B^T B + lambda I)^-1 B^T E."""
    return Product(ridge.solve(client.dB.T @ B).T, client.dA)
