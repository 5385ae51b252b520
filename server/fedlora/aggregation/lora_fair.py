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
`lora_fair_cosine` has the paper's own objective.

With `corrects = "A"` the roles change: B is averaged and A is corrected. That is ours.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlora.aggregation.low_rank import RidgeSolver, projected
from fedlora.aggregation.method import BOTH_FACTORS, Combined, Factor, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class LoraFair:
    """The mean of one factor, and the mean of the other corrected by ridge regression.

    Attributes:
        ridge: lambda relative to the mean eigenvalue of G = mean_A mean_A^T, that is lambda = ridge *
            trace(G) / rank; the same number therefore means the same at every layer and every size of
            A. The paper's lambda of 0.01 at PEFT's initialisation is 0.03. At 0 the result is M
            projected on the row space of mean_A; towards infinity it is FedIT. Under corrects = "A",
            G is mean_B^T mean_B.
        corrects: "B", as in the paper, or "A".

    Raises:
        ValueError: `ridge` is negative or not finite, or `corrects` is something else.
    """

    name: ClassVar[str] = "lora_fair"
    changes_base: ClassVar[bool] = False
    ridge: float = 0.03
    corrects: Factor = "B"

    def __post_init__(self) -> None:
        require_not_negative(ridge=self.ridge)
        if self.corrects not in ("A", "B"):
            raise ValueError(f"corrects is {self.corrects!r}; expected 'B' or 'A'")

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round."""
        return BOTH_FACTORS

    def combine(self, update: CentredUpdate) -> Combined:
        """Return A = mean_A (rank, in_features) and B = mean_B + dB (out_features, rank), or mean_A + dA and mean_B.

        Setting the objective's gradient to zero gives dB = E mean_A^T (G + lambda I)^-1. The clients
        are taken one by one, and of each the product with A first, which is rank x rank: all in all
        2 (rank^2) (in_features + out_features) multiplications a client, in memory that does not
        depend on their number.
        """
        mean_A, mean_B = update.mean_A, update.mean_B
        if self.corrects == "B":
            ridge = RidgeSolver(mean_A, ridge=self.ridge)
            dB = torch.zeros_like(mean_B)
            for weight, dA_i, dB_i in update.deviations():
                dB.addmm_(dB_i, ridge.solve(dA_i @ mean_A.T), alpha=weight)
            return Combined(mean_A, dB.add_(mean_B))
        ridge = RidgeSolver(mean_B.T, ridge=self.ridge)
        dA = torch.zeros_like(mean_A)
        for weight, dA_i, dB_i in update.deviations():
            dA.addmm_(ridge.solve(dB_i.T @ mean_B).T, dA_i, alpha=weight)
        return Combined(dA.add_(mean_A), mean_B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A, and B solved again for them."""
        return projected(A, B, rank)


def require_not_negative(**settings: float) -> None:
    """Raise ValueError if one of the settings is negative or not finite."""
    for name, value in settings.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; expected a finite number that is not negative")
