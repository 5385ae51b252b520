"""FedIT: A and B are averaged separately, as FedAvg does with any parameters.

Zhang et al.: "Towards Building the Federated GPT: Federated Instruction Tuning", 2024, arXiv 2305.05644.

The product of the means is not the mean of the products, and this method leaves that error as it
is; the report's `error_before` is its size. No departure from the paper; the weights (there, the
number of examples) are the caller's. Clients of smaller ranks are padded with zeros and cut again.
"""

from __future__ import annotations

from typing import ClassVar

from fedlora.methods.method import Combined, Layer, Method


class FedIT(Method):
    """The weighted means of A and of B."""

    name: ClassVar[str] = "fedit"
    title: ClassVar[str] = "FedIT (the plain mean of A and of B)"
    summary: ClassVar[str] = "the mean of A and the mean of B"

    def combine(self, layer: Layer) -> Combined:
        """Return A = sum_i p_i A_i (rank, in_features) and B = sum_i p_i B_i (out_features, rank)."""
        return Combined(layer.mean_A, layer.mean_B)
