"""A change of the base weights, written as further rank of an adapter that acts exactly the same."""

from dataclasses import replace

import torch

from fedlora.adapters.adapter import Adapter, LoraLayer
from fedlora.adapters.meaning import starts_from_the_base
from fedlora.adapters.settings import fitted_config
from fedlora.common.errors import AdapterError


def with_base_change_inside(adapter: Adapter) -> Adapter:
    """Return an adapter of larger rank without a change of the base weights that acts as `adapter` does.

    s B A + C_B C_A = s [B, C_B / s] [A; C_A]. A pair whose B is zero, as FLoRA leaves it, is left out.

    Raises:
        AdapterError: PEFT would take something else out of the base weights when it loads the larger rank.
    """
    if not adapter.base_change:
        return adapter
    if start := starts_from_the_base(adapter.config):
        raise AdapterError(
            f"init_lora_weights is {start!r}: with a change of the base weights as further rank PEFT would load the "
            "adapter onto other base weights; choose a method that leaves them alone, or save the "
            "adapters with path_initial_model_for_weight_conversion first"
        )
    layers = dict(adapter.layers)
    for path, change in adapter.base_change.items():
        layer = layers.get(path)
        layers[path] = change if layer is None else _concatenated(layer, change)
    return replace(adapter, layers=layers, config=fitted_config(adapter.config, layers), base_change={})


def _concatenated(layer: LoraLayer, change: LoraLayer) -> LoraLayer:
    change_B = change.B * (change.scaling / layer.scaling)
    if not layer.B.any():
        return replace(layer, A=change.A, B=change_B)
    dtype = torch.promote_types(layer.A.dtype, change.A.dtype)
    A = torch.cat([layer.A.to(dtype), change.A.to(dtype)])
    return replace(layer, A=A, B=torch.cat([layer.B.to(dtype), change_B.to(dtype)], 1))
