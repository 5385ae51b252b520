"""Adapters whose tensors are changed as they are read, so that a changed cohort takes no more memory than before."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.on_demand import OnDemand


def transformed(
    adapter: Adapter,
    *,
    layer: Callable[[str, LoraLayer], LoraLayer],
    dense: Callable[[str, Tensor], Tensor] | None = None,
) -> Adapter:
    """Return `adapter` with `layer` applied to each layer and `dense` to each dense tensor whenever one is read.

    Args:
        layer: from a path and the layer there, one of the same shapes and scaling.
        dense: from a path and the tensor there, one of the same shape.
    """
    layers, tensors = adapter.layers, adapter.dense
    return replace(
        adapter,
        layers=OnDemand(layers, lambda path: layer(path, layers[path]), adapter.outline),
        dense=tensors
        if dense is None
        else OnDemand(tensors, lambda path: dense(path, tensors[path]), adapter.dense_outline),
    )
