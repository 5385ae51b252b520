"""Adapters whose tensors are changed as they are read, so that a changed cohort takes no more memory than before."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer

Value = TypeVar("Value")


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
    return replace(
        adapter,
        layers=_OnRead(adapter.layers, layer, outline=adapter.outline),
        dense=adapter.dense if dense is None else _OnRead(adapter.dense, dense),
    )


class _OnRead(Mapping[str, Value], Generic[Value]):
    """A mapping that gives `change(key, value)` for each value of another."""

    def __init__(
        self,
        values: Mapping[str, Value],
        change: Callable[[str, Value], Value],
        outline: Mapping[str, Value] | None = None,
    ) -> None:
        self._values = values
        self._change = change
        self.outline = self if outline is None else outline

    def __getitem__(self, key: str) -> Value:
        return self._change(key, self._values[key])

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
