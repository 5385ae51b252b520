"""FedEx-LoRA: A and B are averaged, and what that gets wrong goes into the base weights.

Singhal, Ponkshe, Vepakomma: "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning
of Foundation Models", ACL 2025, arXiv 2410.09432.

The residual M - mean_B mean_A is kept as factors of rank (K - 1) * rank, exact and without a
singular value decomposition; published code forms it as a full matrix. As in FLoRA, the change of
the base weights is kept as a sum since the run's start.

That sum grows by (K - 1) * rank in every round, until it is as large as the weight. `residual_rank`,
ours, bounds it: in each round it is replaced by the best of that rank of what the pair cannot hold,
R + E with R the sum so far and E = M - mean_B mean_A, which is the same where it has no larger rank.

The best of a rank can also be found from sums over the clients (`power_iterations`, ours too): E is
projected on what the columns of R and the largest singular values of R + E span, and that is added to R
before it is cut. R itself is always held whole, so that nothing of it is lost from round to round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedlora.common.section import Count
from fedlora.methods.method import Combined, Layer, Method, Phases, Product

if TYPE_CHECKING:
    from torch import Tensor


class FedExLora(Method):
    """The means of A and of B, and their error as a change of the base weights.

    Attributes:
        residual_rank: the most rank of that change, over all rounds; None keeps it exact. Where factors of that rank
            would take more than the weight, it is exact too, and dense.
        power_iterations: None takes every client's pair, and R + E is cut exactly. With a number E is sketched from
            sums over the clients, in memory that does not depend on how many they are, as in `flex_lora`; how far that
            is from exact depends on how fast the singular values of R + E fall. Where the sketch would be as wide as
            the weight, E itself is summed, which is exact.
    """

    name: ClassVar[str] = "fedex_lora"
    title: ClassVar[str] = "FedEx-LoRA"
    summary: ClassVar[str] = "the means, and their error moves into the base weights"
    changes_base: ClassVar[bool] = True
    allows_client_ranks: ClassVar[bool] = False
    allows_late_updates: ClassVar[bool] = False

    residual_rank: Count | None = Field(
        None, description="the most rank of the base weights' change, over all rounds; without it the change is exact"
    )

    power_iterations: int | None = Field(
        None,
        ge=0,
        description="so many, and with residual_rank sums over the clients, in place of all their pairs at once",
    )

    @property
    def needs_every_pair(self) -> bool:
        """They are the result, unless that is cut to a rank by iterations."""
        return self.residual_rank is None or self.power_iterations is None

    @classmethod
    def combines_mixed_ranks(cls) -> bool:
        """It is exact for any ranks, but with the pair cut to a smaller rank a client would not have the exact sum."""
        return True

    @property
    def base_change_rank(self) -> int | None:
        """The residual rank."""
        return self.residual_rank

    def added_base_rank(self, rank: int, num_clients: int) -> int:
        """Return the rank of the residual."""
        return rank * (num_clients - 1)

    def idle(self) -> dict[str, str]:
        """Without a bound on its rank the change is all pairs."""
        return {} if self.residual_rank is not None else {"power_iterations": "it is for aggregation.residual_rank"}

    def combine(self, layer: Layer) -> Combined | Phases:
        """Return the means, and as the change of the base weights E, or what of it the residual rank has room for."""
        if self.residual_rank is None or self.power_iterations is None:
            return Combined(layer.mean_A, layer.mean_B, self._stacked(layer))
        return self._summed(layer, rank=self.residual_rank, num_iterations=self.power_iterations)

    def _stacked(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Return E from every pair.

        With one rank for all, sum_i p_i (B_i - mean_B) = 0 lets the A of one client c, that of the largest weight, be
        the centre in place of the mean: E = sum_{i != c} p_i (B_i - mean_B) (A_i - A_c), one client's rank less.
        """
        import torch

        pairs = layer.every_pair()
        P, Q = pairs.stacked_deviations()
        rank = layer.mean_A.shape[0]
        if any(client_rank != rank for client_rank in pairs.ranks):
            return P, Q
        centre = max(range(len(pairs.p)), key=lambda client: (pairs.p[client], client))
        blocks = Q.view(-1, rank, Q.shape[1])
        dA = blocks[centre] / pairs.p[centre]
        for block, weight in zip(blocks, pairs.p, strict=True):
            block.sub_(dA, alpha=weight)
        before, after = slice(centre * rank), slice((centre + 1) * rank, None)
        return torch.cat([P[:, before], P[:, after]], 1), torch.cat([Q[before], Q[after]])

    def _summed(self, layer: Layer, *, rank: int, num_iterations: int) -> Phases:
        """Return the means and E's part that counts, from sums over the clients."""
        from fedlora.algebra.low_rank import recompressed, with_identity
        from fedlora.methods.sketch import OVERSAMPLING, sketched

        known_rank = layer.base_change[1].shape[0]
        if max(rank, known_rank) + rank + OVERSAMPLING >= min(layer.mean_B.shape[0], layer.mean_A.shape[1]):
            E = yield lambda client: Product(client.dB, client.dA)
            return Combined(layer.mean_A, layer.mean_B, with_identity(E))
        known = layer.base_change
        Q, Q_E = yield from sketched(known, rank=rank, num_iterations=num_iterations, holds_known=True)
        # Beyond the clients' rank there is nothing but rounding in it.
        return Combined(layer.mean_A, layer.mean_B, recompressed(Q, Q_E))
