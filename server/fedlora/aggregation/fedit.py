"""FedIT: A and B are averaged separately, as FedAvg does with any parameters.

Zhang et al.: "Towards Building the Federated GPT: Federated Instruction Tuning", 2024, arXiv 2305.05644.

The product of the means is not the mean of the products, and this method leaves that error as it
is; the report's `error_before` is its size. No departure from the paper; the weights (there, the
number of examples) are the caller's.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.aggregation.method import CentredUpdate


@dataclass(frozen=True)
class FedIT:
    """The weighted means of A and of B."""

    name: ClassVar[str] = "fedit"

    def combine(self, update: CentredUpdate) -> tuple[Tensor, Tensor]:
        """Return A = sum_i p_i A_i (rank, in_features) and B = sum_i p_i B_i (out_features, rank)."""
        return update.mean_A, update.mean_B
