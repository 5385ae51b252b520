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

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedlora.methods.method import Combined, Layer, Method, Phases

if TYPE_CHECKING:
    from torch import Tensor


class FlexLora(Method):
    """The truncated singular value decomposition of the mean of the products.

    Attributes:
        power_iterations: None takes every client's pair and is exact. With a number the same is found from sums over
            the clients, in memory that does not depend on how many they are: M is sketched by its products with
            rank + 8 random directions, which so many passes back and forth turn towards its singular vectors.
            How far that is from exact depends on how fast the singular values fall: 2 are within float32's rounding
            where the clients are close to each other.
    """

    name: ClassVar[str] = "flex_lora"
    title: ClassVar[str] = "FlexLoRA"
    summary: ClassVar[str] = "the best product of this rank, by singular values of small factors"

    power_iterations: int | None = Field(
        None,
        ge=0,
        description="so many, and sums over the clients, in place of all their pairs at once, which is exact",
    )

    @property
    def needs_every_pair(self) -> bool:
        """Three times over, or the layer's weight where that is less, unless it iterates."""
        return self.power_iterations is None

    def combine(self, layer: Layer) -> Combined | Phases:
        """Return the A (rank, in_features), B (out_features, rank) whose product is closest to M."""
        if self.power_iterations is not None:
            return self._iterated(layer, self.power_iterations)
        return self._split(layer, *layer.every_pair().stacked())

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the best product of that rank to B A, which is the best to M too."""
        from fedlora.algebra.dead_directions import brought_to_life
        from fedlora.algebra.low_rank import aligned, best_product

        found = aligned(*best_product(B, A, rank), to=A[:rank])
        return brought_to_life(*found, like=(A[:rank], B[:, :rank]), spare=A)

    def _iterated(self, layer: Layer, num_iterations: int) -> Phases:
        from fedlora.methods.sketch import sketched

        # The means are known: of M = mean_B mean_A + E only E is summed.
        means = layer.mean_B, layer.mean_A
        Q, Q_E = yield from sketched(means, rank=layer.mean_A.shape[0], num_iterations=num_iterations)
        return self._split(layer, Q, (Q.T @ layer.mean_B) @ layer.mean_A + Q_E)

    def _split(self, layer: Layer, left: Tensor, right: Tensor) -> Combined:
        """Return the best product of the layer's rank to left @ right, in the split that clients know."""
        from fedlora.algebra.dead_directions import brought_to_life
        from fedlora.algebra.low_rank import aligned, best_product

        found = aligned(*best_product(left, right, layer.mean_A.shape[0]), to=layer.mean_A)
        return Combined(*brought_to_life(*found, like=(layer.mean_A, layer.mean_B), spare=layer.start_A))
