"""FFA-LoRA: A is drawn once, the same for all, and never trained; B is trained and averaged.

Sun, Li, Li, Ding: "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.

With one A for everybody the mean of the products is the product of the means, so that averaging
makes no error, at the price of the directions that A leaves out. No departure from the paper: A is
PEFT's initialisation, drawn once for the whole run (drawing it anew at each client, as some code
does, would lose just what the method is for).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.aggregation.low_rank import truncated
from fedlora.aggregation.method import Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class FfaLora:
    """The weighted mean of B; A stays as it was at the start of the run."""

    name: ClassVar[str] = "ffa_lora"
    changes_base: ClassVar[bool] = False

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train B in every round."""
        return RoundPlan(trains=("B",))

    def combine(self, update: CentredUpdate) -> Combined:
        """Return the clients' common A (rank, in_features) and B = sum_i p_i B_i (out_features, rank)."""
        return Combined(update.mean_A, update.mean_B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A and columns of B: all clients keep rows of one A."""
        return truncated(A, B, rank)
