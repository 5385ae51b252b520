"""The adapter: low-rank pairs by layer, and the dense tensors that are trained beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """One LoRA pair; the layer's weight W (out_features, in_features) acts as W + scaling * B @ A.

    Attributes:
        A: (rank, in_features).
        B: (out_features, rank).
        scaling: alpha / rank, or alpha / sqrt(rank) under rsLoRA.
    """

    A: Tensor
    B: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def shapes(self) -> str:
        """Return both shapes in words, for messages: `A (8, 768), B (768, 8)`."""
        return f"A {tuple(self.A.shape)}, B {tuple(self.B.shape)}"


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a PEFT folder holds.

    Attributes:
        layers: LoRA pairs by module path in the base model, such as `encoder.layer.0.attention.q_proj`.
        dense: tensors that are trained whole (heads, `modules_to_save`), by their path in the base model.
        config: the content of PEFT's adapter_config.json.
    """

    layers: Mapping[str, LoraLayer]
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)

    def size_bytes(self) -> int:
        """Return the bytes that all tensors take."""
        pairs = (tensor for layer in self.layers.values() for tensor in (layer.A, layer.B))
        return sum(tensor.nbytes for tensors in (pairs, self.dense.values()) for tensor in tensors)
