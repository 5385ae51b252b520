"""One layer's updates, client by client, and the same as their mean and the deviations from it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.methods.method import ClientPair, Contribution, Product


@dataclass(frozen=True, eq=False)
class LayerUpdates:
    """The pairs of one layer, of the clients that have it, each read whenever it is asked for.

    Attributes:
        p: one weight for each client, with sum 1.
        ranks: each client's rank, at most that of the result.
        read: returns A_i (rank_i, in_features) and B_i (out_features, rank_i) of the i-th client, in `dtype`, with
            the client's scaling over the result's folded into B_i.
        A: that of the round's start or zero, (rank, in_features), as the result; a row that no client has stays it.
        B: likewise, (out_features, rank); but a column that no client has is zero.
    """

    p: tuple[float, ...]
    ranks: tuple[int, ...]
    read: Callable[[int], tuple[Tensor, Tensor]]
    A: Tensor
    B: Tensor

    def __iter__(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Yield each client's p_i, A_i and B_i."""
        for index, weight in enumerate(self.p):
            yield (weight, *self.read(index))

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return the ideal update M as P @ Q: see `EveryPair`."""
        return self.stack(self)

    def stack(self, pairs: Iterable[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return [B_1, ..] and [p_1 A_1; ..] of `pairs`, which have the shapes of the clients' own."""
        total = sum(self.ranks)
        P, Q = self.B.new_empty(self.B.shape[0], total), self.A.new_empty(total, self.A.shape[1])
        start = 0
        for weight, A, B in pairs:
            rows = slice(start, start + A.shape[0])
            P[:, rows] = B
            torch.mul(A, weight, out=Q[rows])
            start = rows.stop
        return P, Q


@dataclass(frozen=True, eq=False)
class CentredUpdate:
    """All clients' updates of one layer, as their mean and their deviations from it.

    The ideal update, M = sum_i p_i B_i A_i (out_features, in_features), is

        M = mean_B @ mean_A + E,    E = sum_i p_i (B_i - owned_B) (A_i - mean_A),

    so that E is what averaging A and B separately gets wrong. Both are products to be multiplied by
    something small first: neither fits in memory for every layer of a large model. The deviations
    are taken before anything is multiplied, because in float32 the difference of the products is
    lost when clients are close.

    Where clients have different ranks, the mass of a row is counted once: a row of `mean_A` is the
    mean over the clients that have the row, and a column of `mean_B` the sum over them, as if it
    were zero at the others. `owned_B` is its mean over those that have it. With one rank for all,
    `mean_A` and `mean_B` are the plain means and `owned_B` is `mean_B`.

    All tensors have one dtype, float32 or (for float64 updates) float64. K is the number of
    clients, and no tensor includes the layer's scaling.

    Attributes:
        updates: the clients' pairs, which are read again at each pass over them.
        mean_A: (rank, in_features).
        mean_B: (out_features, rank).
        owned_B: (out_features, rank).
    """

    updates: LayerUpdates
    mean_A: Tensor
    mean_B: Tensor
    owned_B: Tensor

    @property
    def p(self) -> tuple[float, ...]:
        """The clients' weights, with sum 1."""
        return self.updates.p

    @property
    def ranks(self) -> tuple[int, ...]:
        """The clients' ranks."""
        return self.updates.ranks

    def deviations(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Yield each client's p_i, A_i - mean_A (rank_i, in_features) and B_i - owned_B (out_features, rank_i).

        The two tensors are written over for the next client: fresh memory for each would cost more than the rest.
        """
        for weight, client in self._clients():
            yield weight, client.dA, client.dB

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return M as P @ Q: see `EveryPair`."""
        return self.updates.stacked()

    def stacked_deviations(self) -> tuple[Tensor, Tensor]:
        """Return E as P @ Q: see `EveryPair`."""
        return self.updates.stack(self.deviations())

    def total(self, contribution: Contribution) -> Tensor:
        """Return the sum of what the clients add, with their weights: one pass over them."""
        total: Tensor | None = None
        for weight, client in self._clients():
            part = contribution(client)
            if isinstance(part, Product):
                if total is None:
                    total = part.left.new_zeros(part.left.shape[0], part.right.shape[1])
                total.addmm_(part.left, part.right, alpha=weight)
            else:
                total = part * weight if total is None else total.add_(part, alpha=weight)
        assert total is not None  # There is at least one client.
        return total

    def _clients(self) -> Iterator[tuple[float, ClientPair]]:
        space = torch.empty_like(self.mean_A), torch.empty_like(self.owned_B)
        for weight, A, B in self.updates:
            yield weight, ClientPair(A, B, self.mean_A, self.owned_B, space=space)


def centre(updates: LayerUpdates) -> CentredUpdate:
    """Return the mean and the deviations of one layer's updates, after one pass over the clients.

    The means run along in float32 (float64 for float64 updates): each step moves them towards the
    next client by its share of the weight so far, so that equal clients give back that client
    exactly, and one client itself.
    """
    if len(set(updates.ranks)) == 1 and updates.ranks[0] == updates.A.shape[0]:
        mean_A, mean_B = _plain_means(updates)
        return CentredUpdate(updates, mean_A, mean_B, mean_B)
    return _owned_means(updates)


def weighted_mean(tensors: Iterable[Tensor], *, p: Sequence[float]) -> Tensor:
    """Return sum_i p_i tensors_i / sum_i p_i, float32, or float64 if a tensor is float64.

    Args:
        tensors: at least one, of one shape and any dtype; they are taken one after the other.
        p: one weight for each tensor.
    """
    mean: Tensor | None = None
    mass = 0.0
    for tensor, weight in zip(tensors, p, strict=True):
        mass += weight
        if mean is None:
            mean = tensor.to(working_dtype([tensor]), copy=True)
        else:
            mean = mean.to(working_dtype([mean, tensor]))
            mean.lerp_(tensor.to(mean.dtype), weight / mass)
    if mean is None:
        raise ValueError("no tensors; expected at least one")
    return mean


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype to compute in: bf16 has 8 bits of mantissa, and a sum over 100 clients loses the small ones."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _plain_means(updates: LayerUpdates) -> tuple[Tensor, Tensor]:
    mass = updates.p[0]
    first_A, first_B = updates.read(0)
    mean_A, mean_B = first_A.clone(), first_B.clone()
    for index in range(1, len(updates.p)):
        weight = updates.p[index]
        mass += weight
        A, B = updates.read(index)
        mean_A.lerp_(A, weight / mass)
        mean_B.lerp_(B, weight / mass)
    return mean_A, mean_B


def _owned_means(updates: LayerUpdates) -> CentredUpdate:
    """Return the centred update of clients with different ranks: the mass of each row is counted once."""
    mean_A, owned_B = updates.A.clone(), updates.B.clone()
    mass = torch.zeros(mean_A.shape[0], dtype=torch.float64, device=mean_A.device)
    for weight, A, B in updates:
        rank = A.shape[0]
        mass[:rank] += weight
        step = (weight / mass[:rank]).to(mean_A.dtype)
        mean_A[:rank].lerp_(A, step[:, None])
        owned_B[:, :rank].lerp_(B, step)
    return CentredUpdate(updates, mean_A, owned_B * mass.to(owned_B.dtype), owned_B)


def shares_of(weights: Sequence[float]) -> list[float]:
    """Return finite, positive weights over their sum."""
    largest = max(weights)  # The sum of very large weights would overflow.
    total = math.fsum(weight / largest for weight in weights)
    return [weight / largest / total for weight in weights]
