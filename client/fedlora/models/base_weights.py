"""The frozen base weights below the LoRA layers, and a change that is added to them and taken away again."""

from collections.abc import Mapping
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer as PeftLoraLayer
from torch import Tensor, nn

from fedlora.adapters import LoraLayer
from fedlora.adapters.dense_change import dense_of
from fedlora.common.errors import AdapterError, ModelError


class BaseWeights:
    """Adds a change to a PEFT model's base weights, always to the weights as they were at first.

    The change counts from the untouched base model. A client that sat out some rounds therefore has
    the same weights as all others, and no rounding adds up.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        self._model: nn.Module = peft_model.get_base_model()
        self._untouched: dict[str, Tensor] = {}
        self._applied: dict[str, LoraLayer] = {}

    @torch.no_grad()
    def change(self, changes: Mapping[str, LoraLayer]) -> None:
        """Make every base weight its untouched value plus its change, if it has one.

        Raises:
            AdapterError: a change is of a layer that has no LoRA, or of another shape.
            ModelError: a weight is quantised, so that nothing can be added to it.
        """
        weights = {path: self._weight(path) for path in self._untouched.keys() | changes.keys()}
        for path, change in changes.items():
            shape = (change.B.shape[0], change.A.shape[1])
            if tuple(weights[path].shape) != (shape[::-1] if self._is_transposed(path) else shape):
                raise AdapterError(f"the change of {path}'s weight has {shape}; it has {tuple(weights[path].shape)}")
        for path, weight in weights.items():
            if path in changes and _is_equal(changes[path], self._applied.get(path)):
                continue
            if path not in self._untouched:
                self._untouched[path] = weight.detach().clone()
            if path not in changes:
                weight.copy_(self._untouched[path])
                self._applied.pop(path, None)
                continue
            added = _product(changes[path], weight.device) * changes[path].scaling
            weight.copy_(self._untouched[path].float() + (added.T if self._is_transposed(path) else added))

        self._applied |= changes

    def _is_transposed(self, path: str) -> bool:
        """Return whether the weight is (in_features, out_features): an embedding's, or that of GPT-2's linear layer."""
        module = cast(PeftLoraLayer, self._model.get_submodule(path))
        return isinstance(module.get_base_layer(), nn.Embedding) or bool(getattr(module, "fan_in_fan_out", False))

    def _weight(self, path: str) -> Tensor:
        try:
            module = self._model.get_submodule(path)
        except AttributeError:
            module = None
        if not isinstance(module, PeftLoraLayer):
            raise AdapterError(f"a change of the base weight of {path}, which is no layer with LoRA in this model")
        weight = cast(Tensor, module.get_base_layer().weight)
        if not weight.is_floating_point():
            raise ModelError(
                f"the base weight of {path} is quantised ({weight.dtype}), and the run's method adds to it; "
                "load the model unquantised, or choose a method that leaves the base weights alone"
            )
        return weight


def _product(change: LoraLayer, device: torch.device) -> Tensor:
    """Return B A (out_features, in_features) in float32; a change that is one matrix already is not multiplied."""
    if (dense := dense_of(change)) is not None:
        return dense.to(device, torch.float32)
    return change.B.to(device, torch.float32) @ change.A.to(device, torch.float32)


def _is_equal(change: LoraLayer, other: LoraLayer | None) -> bool:
    """Return whether two changes are the same, so that the dense product need not be formed again."""
    return (
        other is not None
        and change.scaling == other.scaling
        and torch.equal(change.A, other.A)
        and torch.equal(change.B, other.B)
    )
