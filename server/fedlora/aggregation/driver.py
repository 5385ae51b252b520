"""Runs a method over one layer's updates: its phases one after the other, each one pass over the clients."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fedlora.aggregation.updates import CentredUpdate
from fedlora.algebra.dead_directions import brought_to_life, dead_directions
from fedlora.methods import Combined, Layer, Method


def combine(
    method: Method,
    update: CentredUpdate,
    state: Mapping[str, Tensor],
    base_change: tuple[Tensor, Tensor] | None = None,
) -> Combined:
    """Return the layer as the method combines it.

    It takes the memory of a few means, whatever the number of clients, unless the method needs every pair.

    Args:
        state: what the method wanted to know of this layer after the round before.
        base_change: by what the base weight has changed since the run's start, over the layer's scaling, as factors.
    """
    start_A, start_B = update.updates.A, update.updates.B
    layer = Layer(
        update.mean_A,
        update.mean_B,
        update.owned_B,
        start_A,
        start_B,
        base_change or (start_B[:, :0], start_A[:0]),
        state,
        update if method.needs_every_pair else None,
    )
    phases = method.combine(layer)
    if isinstance(phases, Combined):
        return phases
    try:
        contribution = next(phases)
        while True:
            contribution = phases.send(update.total(contribution))
    except StopIteration as ended:
        combined: Combined = ended.value
        return combined


def alive(combined: Combined, update: CentredUpdate) -> Combined:
    """Return the same product without directions that are dead in both factors: means of clients may have some."""
    num_dead = dead_directions(combined.A, combined.B).shape[1]
    if not num_dead:
        return combined
    means = update.mean_A, update.mean_B
    A, B = brought_to_life(combined.A, combined.B, like=means, spare=update.updates.A)
    note = (
        f"{num_dead} of {len(A)} directions were zero in both A and B, where nothing is ever learned; one factor is "
        "not zero there any more, and the product is the same"
    )
    return replace(combined, A=A, B=B, note=note)
