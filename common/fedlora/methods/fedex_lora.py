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

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from fedlora.common.section import Count
from fedlora.methods.method import Combined, Layer, Method


class FedExLora(Method):
    """The means of A and of B, and their error as a change of the base weights.

    Attributes:
        residual_rank: the most rank of that change, over all rounds; None keeps it exact. Where factors of that rank
            would take more than the weight, it is exact too, and dense.
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

    @property
    def needs_every_pair(self) -> bool:
        """They are the result."""
        return True

    @property
    def base_change_rank(self) -> int | None:
        """The residual rank."""
        return self.residual_rank

    def added_base_rank(self, rank: int, num_clients: int) -> int:
        """Return the rank of the residual."""
        return rank * (num_clients - 1)

    def combine(self, layer: Layer) -> Combined:
        """Return the means, and as the change of the base weights E = M - mean_B mean_A, in factors.

        With one rank for all, sum_i p_i (B_i - mean_B) = 0 lets the A of one client c, that of the largest weight, be
        the centre in place of the mean: E = sum_{i != c} p_i (B_i - mean_B) (A_i - A_c), one client's rank less.
        """
        import torch

        pairs = layer.every_pair()
        P, Q = pairs.stacked_deviations()
        rank = layer.mean_A.shape[0]
        if all(client_rank == rank for client_rank in pairs.ranks):
            centre = max(range(len(pairs.p)), key=lambda client: (pairs.p[client], client))
            blocks = Q.view(-1, rank, Q.shape[1])
            dA = blocks[centre] / pairs.p[centre]
            for block, weight in zip(blocks, pairs.p, strict=True):
                block.sub_(dA, alpha=weight)
            before, after = slice(centre * rank), slice((centre + 1) * rank, None)
            P = torch.cat([P[:, before], P[:, after]], 1)
            Q = torch.cat([Q[before], Q[after]])
        return Combined(layer.mean_A, layer.mean_B, (P, Q))
