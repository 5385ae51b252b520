"""FedIT: A and B are averaged separately, as FedAvg does with any parameters.

Zhang et al.: "Towards Building the Federated GPT: Federated Instruction Tuning", 2024, arXiv 2305.05644.

The product of the means is not the mean of the products, and this method leaves that error as it
is; the report's `error_before` is its size. No departure from the paper; the weights (there, the
number of examples) are the caller's. Clients of smaller ranks are padded with zeros and cut again.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.aggregation.low_rank import truncated
from fedlora.aggregation.method import BOTH_FACTORS, Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class FedIT:
    """The weighted means of A and of B."""

    name: ClassVar[str] = "fedit"
    changes_base: ClassVar[bool] = False

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round."""
        return BOTH_FACTORS

    def combine(self, update: CentredUpdate) -> Combined:
        """Return A = sum_i p_i A_i (rank, in_features) and B = sum_i p_i B_i (out_features, rank)."""
        return Combined(update.mean_A, update.mean_B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A and columns of B."""
        return truncated(A, B, rank)
