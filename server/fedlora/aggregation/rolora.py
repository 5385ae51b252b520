"""RoLoRA: A and B are trained and averaged in alternate rounds.

Chen, Guo, Ju, Dalal, Zhu, Khisti: "Robust Federated Finetuning of LLMs via Alternating Optimization
of LoRA", 2024, arXiv 2502.01755.

While one factor is frozen, all clients have the same one, and averaging the other makes no error.
B goes first: it starts at zero, where A would have no gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.aggregation.low_rank import truncated
from fedlora.aggregation.method import Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class RoLora:
    """The weighted mean of the factor that was trained: of B in odd rounds, of A in even ones."""

    name: ClassVar[str] = "rolora"
    changes_base: ClassVar[bool] = False

    def plan(self, round: int, /) -> RoundPlan:
        """Clients train B in odd rounds and A in even ones."""
        return RoundPlan(trains=("B",) if round % 2 else ("A",))

    def combine(self, update: CentredUpdate) -> Combined:
        """Return the means of A (rank, in_features) and B (out_features, rank), one of which all clients share."""
        return Combined(update.mean_A, update.mean_B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A and columns of B."""
        return truncated(A, B, rank)
