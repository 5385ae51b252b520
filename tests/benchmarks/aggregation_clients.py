"""The pairs that the aggregation's benchmarks take, drawn from a fixed seed: clients around a common start.

As after some local training, each client is off the start by a third of its size. Float32, in memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.aggregation.updates import LayerUpdates

Pair = tuple[Tensor, Tensor]

_SPREAD = 0.3


def drawn_pairs(
    num_clients: int, *, out_features: int, in_features: int, rank: int, generator: torch.Generator
) -> list[Pair]:
    """Return each client's A (rank, in_features) and B (out_features, rank)."""
    A = torch.randn(rank, in_features, generator=generator) / in_features**0.5
    B = 0.02 * torch.randn(out_features, rank, generator=generator)
    return [(_around(A, generator), _around(B, generator)) for _ in range(num_clients)]


def updates_of(pairs: Sequence[Pair]) -> LayerUpdates:
    """Return the pairs, of one rank and equal weights, as what `centre` takes."""
    A, B = pairs[0]
    zero = torch.zeros(())
    num_clients = len(pairs)
    return LayerUpdates(
        (1 / num_clients,) * num_clients,
        (A.shape[0],) * num_clients,
        pairs.__getitem__,
        zero.expand(A.shape),
        zero.expand(B.shape),
    )


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


def _around(start: Tensor, generator: torch.Generator) -> Tensor:
    return start + _SPREAD * start.std() * torch.randn(start.shape, generator=generator)
