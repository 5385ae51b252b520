"""FlexLoRA: the best product of each client's rank to the mean of the products.

Bai, Chen, Qian, Yao, Li: "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks
and Client Resources", NeurIPS 2024, arXiv 2402.11505.

Three departures. The paper decomposes the full matrix M; here its singular vectors come from thin QR
decompositions of the stacked factors and a core of K * rank rows. The paper's split of the product
moves A by more than its own size from round to round; here the balanced split is turned towards the
mean of A (orthogonal Procrustes), which changes no product and lets an optimiser's step mean what it
meant. And where the product has a smaller rank than the pair (before the first step it is zero), its
split is zero in both factors, which would never learn: there A keeps what the clients have, and B
alone is zero, as at the start (`dead_directions`).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.aggregation.dead_directions import brought_to_life
from fedlora.aggregation.low_rank import aligned, best_product
from fedlora.aggregation.method import BOTH_FACTORS, Combined, RoundPlan
from fedlora.aggregation.updates import CentredUpdate


@dataclass(frozen=True)
class FlexLora:
    """The truncated singular value decomposition of the mean of the products."""

    name: ClassVar[str] = "flex_lora"
    changes_base: ClassVar[bool] = False

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round."""
        return BOTH_FACTORS

    def combine(self, update: CentredUpdate) -> Combined:
        """Return the A (rank, in_features), B (out_features, rank) whose product is closest to M.

        It takes the memory of all clients' pairs of this layer three times over, or of the layer's weight where
        that is less.
        """
        best = best_product(*update.updates.stacked(), update.mean_A.shape[0])
        found = aligned(*best, to=update.mean_A)
        means = update.mean_A, update.mean_B
        return Combined(*brought_to_life(*found, like=means, spare=update.updates.A))

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the best product of that rank to B A, which is the best to M too."""
        found = aligned(*best_product(B, A, rank), to=A[:rank])
        return brought_to_life(*found, like=(A[:rank], B[:, :rank]), spare=A)
