"""An adapter that a run starts from in place of a fresh one: `federation.start_from`."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, load_adapter
from fedlora.adapters.fit import bad_value, other_form
from fedlora.adapters.keys import named_tensors
from fedlora.adapters.meaning import difference_in_meaning
from fedlora.common.errors import AdapterError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """Where a run has room for what a given adapter holds.

    Attributes:
        starts_fresh: whether the first round puts new pairs in place of those it is given, as FLoRA does.
        base_changes: whether the run's adapter goes with a change of the base weights, by its method or its start.
    """

    starts_fresh: bool
    base_changes: bool


def given_start(source: str, *, like: Adapter, room: Room) -> Adapter:
    """Return the adapter in the folder `source`, fit for this run; where it has no head, the run's starts fresh.

    It acts on the untouched base model as the folder's does. What of it the run's pairs cannot hold becomes a change of
    the base weights, where such changes go with the adapter: the whole of it where the first round starts from fresh
    pairs, and of a larger rank what is beyond the run's, as a run of the same kind has saved it.

    Args:
        source: a PEFT folder, as any run's adapter/ and best/ and a published version.
        like: the run's fresh adapter.

    Raises:
        AdapterError: the folder is no adapter, or does not fit this run.
    """
    given = load_adapter(source)
    if difference := difference_in_meaning(given.config, like.config):
        raise AdapterError(f"federation.start_from: {source} does not fit this run: {difference}")
    layers: dict[str, LoraLayer] = {}
    change: dict[str, LoraLayer] = {}
    for path, layer in given.layers.items():
        layers[path], moved = _split(_in_float32(layer), like.layers.get(path), room)
        if moved is not None:
            change[path] = moved
    dense = {path: _float32(tensor) for path, tensor in given.dense.items()}
    if not dense and like.dense:
        logger.warning("federation.start_from: %s has no %s; the run's starts fresh", source, ", ".join(like.dense))
    start = Adapter(layers, dense or like.dense, like.config)
    if misfit := other_form(start, like) or bad_value(named_tensors(start)):
        raise AdapterError(f"federation.start_from: {source} does not fit this run: {misfit}{_cure(given, like)}")
    for path, moved in change.items():
        if misfit := bad_value(((path, tensor) for tensor in moved.tensors()), most=math.inf):
            raise AdapterError(f"federation.start_from: {source}: {misfit.found}")
    return replace(start, base_change=change)


def _split(layer: LoraLayer, like: LoraLayer | None, room: Room) -> tuple[LoraLayer, LoraLayer | None]:
    """Return the pair that the run's layer becomes, and what goes into its base weight."""
    if like is None or _sides(layer) != _sides(like):
        return layer, None
    if math.isclose(layer.scaling, like.scaling, rel_tol=1e-9):
        layer = replace(layer, scaling=like.scaling)  # As computed from another rank, it may differ in its last bit.
    if room.starts_fresh:
        return like, _as_change(layer, 0)
    if room.base_changes and layer.rank > like.rank and layer.magnitude is None:
        kept = replace(layer, A=layer.A[: like.rank].contiguous(), B=layer.B[:, : like.rank].contiguous())
        return kept, _as_change(layer, like.rank)
    return layer, None


def _as_change(layer: LoraLayer, first: int) -> LoraLayer:
    """Return what the pair does from the row `first` of A on, as a change of the base weight."""
    B = layer.B[:, first:] * layer.scaling
    return LoraLayer(layer.A[first:].contiguous(), B.contiguous(), 1.0, is_embedding=layer.is_embedding)


def _in_float32(layer: LoraLayer) -> LoraLayer:
    beside: Mapping[str, Tensor | None] = {"bias": layer.bias, "magnitude": layer.magnitude}
    known = {name: None if vector is None else vector.float() for name, vector in beside.items()}
    return replace(layer, A=layer.A.float(), B=layer.B.float(), bias=known["bias"], magnitude=known["magnitude"])


def _float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def _sides(layer: LoraLayer) -> tuple[int, int, bool]:
    return layer.A.shape[1], layer.B.shape[0], layer.is_embedding


def _cure(given: Adapter, like: Adapter) -> str:
    """Return what to do about another rank, where that is what differs."""
    pairs = [(layer.rank, like.layers[path].rank) for path, layer in given.layers.items() if path in like.layers]
    if all(found == expected for found, expected in pairs):
        return ""
    most, run = max(found for found, _ in pairs), max(expected for _, expected in pairs)
    return (
        f"; the adapter's rank is {most}, the run's {run}: set lora.rank = {most} and the alpha that goes with it, or "
        f"cut the adapter with `fedlora aggregate --rank {run}`"
    )
