"""RoLoRA: A and B are trained and averaged in alternate rounds.

Chen, Guo, Ju, Dalal, Zhu, Khisti: "Robust Federated Finetuning of LLMs via Alternating Optimization
of LoRA", 2024, arXiv 2502.01755.

While one factor is frozen, all clients have the same one, and averaging the other makes no error.
B goes first: it starts at zero, where A would have no gradient.
"""

from __future__ import annotations

from typing import ClassVar

from fedlora.methods.method import Combined, Layer, Method, RoundPlan


class RoLora(Method):
    """The weighted mean of the factor that was trained: of B in odd rounds, of A in even ones."""

    name: ClassVar[str] = "rolora"
    title: ClassVar[str] = "RoLoRA (A and B in turn)"
    summary: ClassVar[str] = "A and B trained and averaged in alternate rounds"
    allows_late_updates: ClassVar[bool] = False

    def plan(self, round: int, /) -> RoundPlan:
        """Clients train B in odd rounds and A in even ones."""
        return RoundPlan(trains=("B",) if round % 2 else ("A",))

    def combine(self, layer: Layer) -> Combined:
        """Return the means of A (rank, in_features) and B (out_features, rank), one of which all clients share."""
        return Combined(layer.mean_A, layer.mean_B)
