"""A linear head on the pooled features of any transformers encoder, of pictures or of texts."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlora.common.errors import ModelError

HEAD = "classification_head"


class PooledClassifier(nn.Module):
    """An encoder with a linear head on its pooled features.

    The encoder's parts are its own under their own names, so that an adapter's tensors have the names
    they would have on the plain encoder, which therefore takes the LoRA part too.
    """

    # PEFT asks every model that holds a transformers model for it.
    base_model_prefix = ""

    def __init__(self, encoder: nn.Module, example: Mapping[str, Tensor], *, num_labels: int, pooling: str) -> None:
        """Take `encoder` over; it is run once, on `example`, to see what features it gives.

        Args:
            example: the encoder's inputs, of one picture or text.
            pooling: mean, cls, cls_mean, or auto: cls_mean of pictures where there is a class token, else mean.

        Raises:
            ModelError: `pooling` needs a class token and there is none.
        """
        super().__init__()
        self.config = encoder.config
        # Both hold the same dictionaries: what PEFT replaces, or `to` moves, in one is replaced and moved in the other.
        self.__dict__["_encoder"] = encoder
        self._modules, self._parameters, self._buffers = encoder._modules, encoder._parameters, encoder._buffers
        takes = inspect.signature(encoder.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        encoder.eval()
        with torch.no_grad():
            hidden = self._encode(example)
            self._pooling = _pooling(pooling, encoder, hidden, example)
            width = self._pool(hidden, example).shape[1]
        self.add_module(HEAD, nn.Linear(width, num_labels))

    @property
    def plain_encoder(self) -> nn.Module:
        """The encoder, which holds the head among its parts too."""
        encoder: nn.Module = self.__dict__["_encoder"]
        return encoder

    @torch.no_grad()
    def recipe(self, example: Mapping[str, Tensor]) -> str:
        """Return in Python how `features` come from `encoder` and `inputs`, for who has the encoder without this class.

        Args:
            example: inputs of the size that is meant.
        """
        options = "".join(f", {name}={value}" for name, value in self._options.items() if "pixel_values" in example)
        hidden = self._encode(example)
        if hidden.ndim == 4:
            pooled = "hidden.flatten(2).mean(-1)"
        elif "attention_mask" in example:
            pooled = "(hidden * mask).sum(1) / mask.sum(1)"
        else:
            num_prefix = _num_prefix_tokens(hidden, example["pixel_values"], self.config)
            pooled = f"hidden[:, {num_prefix}:].mean(1)" if num_prefix else "hidden.mean(1)"
        if self._pooling == "cls":
            pooled = "hidden[:, 0]"
        elif self._pooling == "cls_mean":
            pooled = f"torch.cat([hidden[:, 0], {pooled}], dim=-1)"
        mask = 'mask = inputs["attention_mask"][:, :, None]\n' if "mask." in pooled else ""
        return f"hidden = encoder(**inputs{options}).last_hidden_state\n{mask}features = {pooled}"

    def train(self, mode: bool = True) -> "PooledClassifier":
        """Set training mode, in the encoder's outermost module too."""
        self.__dict__["_encoder"].training = mode
        return super().train(mode)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Make the encoder's layers compute their activations again for the gradients."""
        self.__dict__["_encoder"].activation_checkpointing_enable(**options)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return logits (batch_size, num_labels) for the encoder's own inputs."""
        head: nn.Module = getattr(self, HEAD)
        features = self._pool(self._encode(inputs), inputs)
        # What is trained is float32 also where the frozen encoder is not.
        logits: Tensor = head(features.to(next(head.parameters()).dtype))
        return logits

    def _encode(self, inputs: Mapping[str, Tensor]) -> Tensor:
        options = self._options if "pixel_values" in inputs else {}
        hidden: Tensor = self.__dict__["_encoder"](**inputs, **options).last_hidden_state
        return hidden

    def _pool(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (batch_size, width) of hidden states (batch_size, tokens, hidden_size) or a feature map."""
        if hidden.ndim == 4:  # a convolutional encoder's (batch_size, channels, height, width)
            return hidden.flatten(2).mean(-1)
        if self._pooling == "cls":
            return hidden[:, 0]
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
        else:
            mean = hidden[:, _num_prefix_tokens(hidden, inputs["pixel_values"], self.config) :].mean(1)
        return mean if self._pooling == "mean" else torch.cat([hidden[:, 0], mean], dim=-1)


def _pooling(wanted: str, encoder: nn.Module, hidden: Tensor, example: Mapping[str, Tensor]) -> str:
    if "pixel_values" not in example:
        return "mean" if wanted == "auto" else wanted
    has_class_token = hidden.ndim == 3 and any(
        name.endswith(("cls_token", "class_embedding")) for name, _ in encoder.named_parameters()
    )
    if wanted == "auto":
        return "cls_mean" if has_class_token else "mean"
    if wanted != "mean" and not has_class_token:
        raise ModelError(
            f"model.pooling is {wanted!r}, but {type(encoder).__name__} has no class token; use mean or auto"
        )
    return wanted


def _num_prefix_tokens(hidden: Tensor, pixel_values: Tensor, settings: Any) -> int:
    """Return how many tokens (class, registers, distillation) stand before the patches; 0 where patches are merged."""
    patch = getattr(settings, "patch_size", None)
    height, width = patch if isinstance(patch, list | tuple) and len(patch) == 2 else (patch, patch)
    if not (isinstance(height, int) and isinstance(width, int)):
        return 0
    num_patches = (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)
    return max(0, hidden.shape[1] - num_patches)
