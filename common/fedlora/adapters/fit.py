"""Whether an adapter has the form of another, and numbers that can be computed with. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora.adapters.adapter import Adapter
from fedlora.adapters.keys import named_tensors

# No trained weight is near it, and the products of such values do not overflow float32.
MAX_VALUE = 1e6


@dataclass(frozen=True)
class Misfit:
    """What does not fit: a short code, and what was found against what was expected."""

    code: str
    found: str

    def __str__(self) -> str:
        return f"{self.code}: {self.found}"


def other_form(adapter: Adapter, like: Adapter) -> Misfit | None:
    """Return in what layers, shapes, types or scalings `adapter` is not as `like`; no tensor is read for it.

    A change of the base weights is the server's alone: `like` may have one, and `adapter` may not.
    """
    outline, expected = (dict(named_tensors(_outline(one))) for one in (adapter, replace(like, base_change={})))
    if found := other_keys(outline, expected):
        return found
    for name, tensor in outline.items():
        reference = expected[name]
        if tensor.shape != reference.shape:
            return Misfit("shape", f"{name} {tuple(tensor.shape)}; expected {tuple(reference.shape)}")
        if tensor.dtype != reference.dtype:
            return Misfit("dtype", f"{name} {tensor.dtype}; expected {reference.dtype}")
    for path, layer in adapter.outline.items():
        if layer.scaling != (wanted := like.outline[path].scaling):
            return Misfit("configuration", f"{path} scales by {layer.scaling:g}; expected {wanted:g}")
    return None


def other_keys(found: Mapping[str, object], expected: Mapping[str, object]) -> Misfit | None:
    """Return the first name that is missing among those found, or not expected."""
    if missing := sorted(expected.keys() - found.keys()):
        return Misfit("missing_layer", missing[0])
    if extra := sorted(found.keys() - expected.keys()):
        return Misfit("unexpected_layer", extra[0])
    return None


def bad_value(tensors: Iterable[tuple[str, Tensor]], *, most: float = MAX_VALUE) -> Misfit | None:
    """Return the first of these tensors by name that holds a value which is not finite, or beyond `most`."""
    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            return Misfit("not_finite", f"{name} has values that are not finite")
        if tensor.numel() and most < math.inf and (largest := float(tensor.double().abs().max())) > most:
            return Misfit("too_large", f"{name} holds {largest:.3g}; expected at most {most:g}")
    return None


def _outline(adapter: Adapter) -> Adapter:
    """Return the adapter, to be asked for shapes and types only."""
    return replace(adapter, layers=adapter.outline, dense=adapter.dense_outline)
