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
        bias: (out_features,), what `lora_bias` trains beside B; it acts as scaling * bias. None without.
        magnitude: (out_features,), DoRA's norm of each row of the weight. None without.
        is_embedding: whether the weight is an embedding's, (num_embeddings, dim) = (in_features, out_features),
            which changes by the transpose, scaling * (B @ A)^T.
    """

    A: Tensor
    B: Tensor
    scaling: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the layer has."""
        return [tensor for tensor in (self.A, self.B, self.bias, self.magnitude) if tensor is not None]

    def shapes(self) -> str:
        """Return both shapes in words, for messages: `A (8, 768), B (768, 8)`."""
        return f"A {tuple(self.A.shape)}, B {tuple(self.B.shape)}"


@dataclass(frozen=True, eq=False)
class Adapter:
    """What a PEFT folder holds, and how the base weights have changed beside it.

    Attributes:
        layers: LoRA pairs by module path in the base model, such as `encoder.layer.0.attention.q_proj`.
        dense: tensors that are trained whole (heads, `modules_to_save`), by their path in the base model.
        config: the content of PEFT's adapter_config.json.
        base_change: by layer path, a pair of any rank that is added to the base weight, frozen. Methods such as
            FLoRA and FedEx-LoRA move what the adapter cannot hold there; it counts from the untouched base model.
    """

    layers: Mapping[str, LoraLayer]
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    base_change: Mapping[str, LoraLayer] = field(default_factory=dict)

    @property
    def outline(self) -> Mapping[str, LoraLayer]:
        """The layers, to be asked for shapes, types and scaling only: of an adapter on disk nothing is read for it."""
        outline: Mapping[str, LoraLayer] = getattr(self.layers, "outline", self.layers)
        return outline

    @property
    def dense_outline(self) -> Mapping[str, Tensor]:
        """The dense tensors, to be asked for shapes and types only, as `outline`."""
        outline: Mapping[str, Tensor] = getattr(self.dense, "outline", self.dense)
        return outline

    def size_bytes(self) -> int:
        """Return the bytes that all tensors take."""
        pairs = [layer for layers in (self.outline, self.base_change) for layer in layers.values()]
        parts = [tensor for layer in pairs for tensor in layer.tensors()]
        return sum(tensor.nbytes for tensor in (*parts, *self.dense_outline.values()))
