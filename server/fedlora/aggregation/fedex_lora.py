"""FedEx-LoRA: A and B are averaged, and what that gets wrong goes into the base weights.

Singhal, Ponkshe, Vepakomma: "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning
of Foundation Models", ACL 2025, arXiv 2410.09432.

The residual M - mean_B mean_A is kept as factors of rank (K - 1) * rank, exact and without a
singular value decomposition; published code forms it as a full matrix. As in FLoRA, the change of
the base weights is kept as a sum since the run's start.

That sum grows by (K - 1) * rank in every round, until it is as large as the weight. `residual_rank`,
ours, bounds it: in each round it is replaced by the best of that rank of what the pair cannot hold,
R + M - mean_B mean_A with R the sum so far, which is the same where it has no larger rank.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.aggregation.low_rank import truncated
from fedlora.aggregation.method import BOTH_FACTORS, Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class FedExLora:
    """The means of A and of B, and their error as a change of the base weights.

    Attributes:
        residual_rank: the most rank of that change, over all rounds; None keeps it exact. Where factors of that rank
            would take more than the weight, it is exact too, and dense.

    Raises:
        ValueError: `residual_rank` is no whole number of at least 1.
    """

    name: ClassVar[str] = "fedex_lora"
    changes_base: ClassVar[bool] = True
    residual_rank: int | None = None

    def __post_init__(self) -> None:
        rank = self.residual_rank
        if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
            raise ValueError(f"residual_rank is {rank!r}; expected a whole number of at least 1, or none")

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round."""
        return BOTH_FACTORS

    def combine(self, update: CentredUpdate) -> Combined:
        """Return the means, and as the change of the base weights E = M - mean_B mean_A, in factors.

        With one rank for all, sum_i p_i (B_i - mean_B) = 0 lets the last client's A be the centre in
        place of the mean: E = sum_{i<K} p_i (B_i - mean_B) (A_i - A_K), one client's rank less. It
        takes the memory of all clients' pairs of this layer; they are the result.
        """
        P, Q = update.stacked()
        rank = update.mean_A.shape[0]
        if all(client_rank == rank for client_rank in update.updates.ranks):
            p = update.updates.p
            last = update.updates.read(len(p) - 1)[0] - update.mean_A
            P = P[:, :-rank].contiguous()
            Q = Q[:-rank] - (Q.new_tensor(p[:-1])[:, None, None] * last).flatten(0, 1)
        return Combined(update.mean_A, update.mean_B, (P, Q), self.residual_rank)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A and columns of B."""
        return truncated(A, B, rank)
