"""FLoRA: the clients' pairs are stacked, which makes no error for any ranks, and go into the base weights.

Wang et al.: "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, arXiv 2409.05976.

Everybody adds [B_1 .. B_K] [p_1 A_1; ..; p_K A_K] to the base weights and starts the next round with
a fresh pair. As in the paper; the change of the base weights is kept as a sum since the run's
start, so that a client that sat out some rounds has the right ones too.
"""

from __future__ import annotations

from typing import ClassVar

from fedlora.methods.method import Combined, Layer, Method, RoundPlan


class Flora(Method):
    """The exact mean of the products, as a change of the base weights."""

    name: ClassVar[str] = "flora"
    title: ClassVar[str] = "FLoRA"
    summary: ClassVar[str] = "the stacked pairs move into the base weights, fresh pairs"
    changes_base: ClassVar[bool] = True
    allows_late_updates: ClassVar[bool] = False

    @property
    def needs_every_pair(self) -> bool:
        """They are the result."""
        return True

    def added_base_rank(self, rank: int, num_clients: int) -> int:
        """Return the rank of all clients' pairs together."""
        return rank * num_clients

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train both factors in every round, from a fresh start."""
        return RoundPlan(starts_fresh=True)

    def combine(self, layer: Layer) -> Combined:
        """Return the mean of A with B = 0, and the stacked pairs as the change of the base weights.

        Where rows of A depend on each other, one factor gets further ones: beside B = 0 they could not be trained.
        """
        import torch

        from fedlora.algebra.dead_directions import brought_to_life

        empty, means = torch.zeros_like(layer.mean_B), (layer.mean_A, layer.mean_B)
        A, B = brought_to_life(layer.mean_A, empty, like=means, spare=layer.start_A)
        return Combined(A, B, layer.every_pair().stacked())
