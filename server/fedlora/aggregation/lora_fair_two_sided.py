"""LoRA-FAIR with both factors corrected: B and A in turn, each by the ridge regression of `lora_fair`.

Ours, after Bian et al. (arXiv 2411.14961). The objective

    |M - B A|^2 + lambda_B |B - mean_B|^2 + lambda_A |A - mean_A|^2

never rises. Two sweeps come to within some percent of the best product of this rank, and stay near
the means. A smaller error is not yet a better model: the paper's own ablation with both factors,
which solved it otherwise, was worse than with B alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlora.aggregation.lora_fair import require_not_negative
from fedlora.aggregation.low_rank import RidgeSolver, projected
from fedlora.aggregation.method import BOTH_FACTORS, Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class LoraFairTwoSided:
    """Both means, corrected in turn.

    Attributes:
        ridge: lambda_B relative to the mean eigenvalue of mean_A mean_A^T, and lambda_A to that of mean_B^T mean_B.
        sweeps: how many times B and then A are corrected.

    Raises:
        ValueError: `ridge` is negative or not finite, or there is no sweep.
    """

    name: ClassVar[str] = "lora_fair_two_sided"
    changes_base: ClassVar[bool] = False
    ridge: float = 0.03
    sweeps: int = 2

    def __post_init__(self) -> None:
        require_not_negative(ridge=self.ridge)
        if self.sweeps < 1:
            raise ValueError(f"sweeps is {self.sweeps}; expected at least 1")

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round."""
        return BOTH_FACTORS

    def combine(self, update: CentredUpdate) -> Combined:
        """Return A = mean_A + dA (rank, in_features) and B = mean_B + dB (out_features, rank).

        M - mean_B A = E - mean_B dA and M - B mean_A = E - dB mean_A: each step solves for the whole
        correction from the means, of which both are small where clients are close. It takes the memory
        of all clients' pairs of this layer.
        """
        mean_A, mean_B = update.mean_A, update.mean_B
        P, Q = update.stacked()
        A, B, dA = mean_A, mean_B, torch.zeros_like(mean_A)
        # Both penalties stay what they are at the means, or the objective would change from sweep to sweep.
        scale_B = RidgeSolver(mean_A, ridge=self.ridge).scale
        scale_A = RidgeSolver(mean_B.T, ridge=self.ridge).scale
        for sweep in range(self.sweeps):
            ridge_B = RidgeSolver(A, ridge=self.ridge, scale=scale_B)
            dB = P @ ridge_B.solve(Q @ A.T)
            if sweep > 0:
                dB -= mean_B @ ridge_B.solve(dA @ A.T)
            B = mean_B + dB
            ridge_A = RidgeSolver(B.T, ridge=self.ridge, scale=scale_A)
            dA = ridge_A.solve(P.T @ B).T @ Q - ridge_A.solve(dB.T @ B).T @ mean_A
            A = mean_A + dA
        return Combined(A, B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A, and B solved again for them."""
        return projected(A, B, rank)
