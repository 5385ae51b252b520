"""FLoRA: the clients' pairs are stacked, which makes no error for any ranks, and go into the base weights.

Wang et al.: "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, arXiv 2409.05976.

Everybody adds [B_1 .. B_K] [p_1 A_1; ..; p_K A_K] to the base weights and starts the next round with
a fresh pair. As in the paper; the change of the base weights is kept as a sum since the run's
start, so that a client that sat out some rounds has the right ones too.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlora.aggregation.dead_directions import brought_to_life
from fedlora.aggregation.low_rank import truncated
from fedlora.aggregation.method import Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class Flora:
    """The exact mean of the products, as a change of the base weights."""

    name: ClassVar[str] = "flora"
    changes_base: ClassVar[bool] = True

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round, from a fresh start."""
        return RoundPlan(starts_fresh=True)

    def combine(self, update: CentredUpdate) -> Combined:
        """Return the mean of A with B = 0, and the stacked pairs as the change of the base weights.

        Where rows of A depend on each other, one factor gets further ones: beside B = 0 they could not be trained.
        It takes the memory of all clients' pairs of this layer; they are the result.
        """
        empty, means = torch.zeros_like(update.mean_B), (update.mean_A, update.mean_B)
        A, B = brought_to_life(update.mean_A, empty, like=means, spare=update.updates.A)
        return Combined(A, B, update.updates.stacked())

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of the fresh A, and as many columns of B, which is zero."""
        return truncated(A, B, rank)
