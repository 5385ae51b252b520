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

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fedlora.common.section import NonNegative
from fedlora.methods.method import Combined, Layer, Method, Phases, Product

if TYPE_CHECKING:
    from torch import Tensor


class LoraFair(Method):
    """The mean of A, and the mean of B plus a correction of it; or the other way round.

    Attributes:
        ridge: lambda relative to the mean eigenvalue of G = mean_A mean_A^T, that is lambda = ridge *
            trace(G) / rank; the same number therefore means the same at every layer and every size of
            A. The paper's lambda of 0.01 at PEFT's initialisation is 0.03. At 0 the result is M
            projected on the row space of mean_A; towards infinity it is FedIT. Under corrects = "A",
            G is mean_B^T mean_B.
        corrects: "B", as in the paper, or "A".
    """

    name: ClassVar[str] = "lora_fair"
    title: ClassVar[str] = "LoRA-FAIR"
    summary: ClassVar[str] = "the mean of A, and the mean of B corrected towards the mean of the products"

    ridge: NonNegative = Field(
        0.03, description="lambda relative to the mean eigenvalue of A A^T; a large one approaches the plain mean"
    )
    corrects: Literal["A", "B"] = Field("B", description="the factor that is corrected; B as in the paper")

    def combine(self, layer: Layer) -> Phases:
        """Return A = mean_A (rank, in_features) and B = mean_B + dB (out_features, rank), or mean_A + dA and mean_B.

        Setting the objective's gradient to zero gives dB = E mean_A^T (G + lambda I)^-1. Of each client the product
        with A comes first, which is rank x rank: all in all 2 (rank^2) (in_features + out_features) multiplications
        a client.
        """
        from fedlora.algebra.low_rank import RidgeSolver

        mean_A, mean_B = layer.mean_A, layer.mean_B
        if self.corrects == "B":
            ridge = RidgeSolver(mean_A, ridge=self.ridge)
            dB = yield lambda client: Product(client.dB, ridge.solve(client.dA @ mean_A.T))
            return Combined(mean_A, mean_B + dB)
        ridge = RidgeSolver(mean_B.T, ridge=self.ridge)
        dA = yield lambda client: Product(ridge.solve(client.dB.T @ mean_B).T, client.dA)
        return Combined(mean_A + dA, mean_B)

    def fit(self, A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first rows of A, and B solved again for them."""
        from fedlora.algebra.low_rank import projected

        return projected(A, B, rank)
