"""FFA-LoRA: A is drawn once, the same for all, and never trained; B is trained and averaged.

Sun, Li, Li, Ding: "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv 2403.12313.

With one A for everybody the mean of the products is the product of the means, so that averaging
makes no error, at the price of the directions that A leaves out. No departure from the paper: A is
PEFT's initialisation, drawn once for the whole run (drawing it anew at each client, as some code
does, would lose just what the method is for).
"""

from __future__ import annotations

from typing import ClassVar

from fedlora.methods.method import Combined, Layer, Method, RoundPlan


class FfaLora(Method):
    """The weighted mean of B; A stays as it was at the start of the run."""

    name: ClassVar[str] = "ffa_lora"
    title: ClassVar[str] = "FFA-LoRA (A frozen, the mean of B)"
    summary: ClassVar[str] = "A frozen from the start, the mean of B"

    def plan(self, _round: int, /) -> RoundPlan:
        """Clients train B in every round."""
        return RoundPlan(trains=("B",))

    def combine(self, layer: Layer) -> Combined:
        """Return the clients' common A (rank, in_features) and B = sum_i p_i B_i (out_features, rank)."""
        return Combined(layer.mean_A, layer.mean_B)
