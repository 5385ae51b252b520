"""What an aggregation method is: the ideal update of one layer in factored form in, one pair A, B out."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class CentredUpdate:
    """All clients' updates of one layer, as their mean and their deviations from it.

    The ideal update, M = sum_i p_i B_i A_i (out_features, in_features), is

        M = mean_B @ mean_A + P @ Q,

    so that E = P @ Q is what averaging A and B separately gets wrong. Both are products to be
    multiplied by something small first: neither fits in memory for every layer of a large model.
    The deviations are taken before anything is multiplied, because in float32 the difference of
    the products is lost when clients are close.

    All four tensors have one dtype, float32 or (for float64 updates) float64. K is the number of
    clients, and no tensor includes the layer's scaling.

    Attributes:
        mean_A: sum_i p_i A_i, (rank, in_features).
        mean_B: sum_i p_i B_i, (out_features, rank).
        P: [B_1 - mean_B, .., B_K - mean_B], (out_features, K * rank).
        Q: [p_1 (A_1 - mean_A); ..; p_K (A_K - mean_A)], (K * rank, in_features).
    """

    mean_A: Tensor
    mean_B: Tensor
    P: Tensor
    Q: Tensor


class Method(Protocol):
    """How one layer's pairs become one pair. Implementations are frozen dataclasses whose fields are the settings."""

    @property
    def name(self) -> str:
        """The method's name in run files and reports."""

    def combine(self, update: CentredUpdate) -> tuple[Tensor, Tensor]:
        """Return the global A (rank, in_features) and B (out_features, rank), in the update's dtype or float64.

        Everything beside A and B (heads, biases) is averaged by `aggregate`, whatever the method.
        """
