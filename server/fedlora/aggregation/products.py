"""What updates do, and how far that is from one another: norms and inner products of changes of the weights.

The change of client i is Delta_i = s_i B_i A_i - s B_0 A_0 in every layer, (A_0, B_0) being the
round's start, and the plain difference in every tensor that is trained whole. As a product it is

    B A - B_0 A_0 = [B - B_0, B_0] [A; A - A_0],

so that its norms and inner products come from Gram matrices of a few columns, and keep their digits
where an update has hardly moved. All of it is in float64.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer


class Start:
    """What a client's layer was at the round's start: the reference's first rows and columns, in its own scaling.

    Attributes:
        A: (rank, in_features).
        B: (out_features, rank), times the reference's scaling over the client's.
    """

    def __init__(self, reference: Adapter, path: str, layer: LoraLayer) -> None:
        start = reference.layers[path]
        self.A = start.A[: layer.rank].to(layer.A.device)
        self.B = start.B[:, : layer.rank].to(layer.B.device)
        if start.scaling != layer.scaling:
            self.B = self.B * (start.scaling / layer.scaling)


@dataclass(frozen=True)
class Line:
    """The squares along the line from the round's start to an update, on which its change is g X + g^2 Y.

    Attributes:
        X_square, X_Y, Y_square: |X|^2, <X, Y>, |Y|^2, over all layers and dense tensors.
    """

    X_square: float
    X_Y: float
    Y_square: float

    def square_at(self, g: float) -> float:
        """Return |g X + g^2 Y|^2."""
        return g**2 * (self.X_square + g * (2 * self.X_Y + g * self.Y_square))


def product_moves(updates: Mapping[str, Adapter], reference: Adapter) -> dict[str, float]:
    """Return, by client, the norm of the change of the weights that its update makes; clients are read one by one."""
    return {client: math.sqrt(max(0.0, line_of(updates[client], reference).square_at(1.0))) for client in updates}


def line_of(update: Adapter, reference: Adapter) -> Line:
    """Return the squares along the line from `reference` to `update`: X = dB A_0 + B_0 dA, Y = dB dA."""
    X_square = X_Y = Y_square = 0.0
    for path in update.layers:
        layer = update.layers[path]
        start = Start(reference, path, layer)
        A_0, B_0 = start.A.double(), start.B.double()
        dA, dB = layer.A.double() - A_0, layer.B.double() - B_0
        X, Y = (torch.cat([dB, B_0], 1), torch.cat([A_0, dA])), (dB, dA)
        weight = layer.scaling**2
        X_square += weight * _inner(X, X)
        X_Y += weight * _inner(X, Y)
        Y_square += weight * _inner(Y, Y)
    for path in update.dense:
        X_square += float((update.dense[path].double() - reference.dense[path].double()).square().sum())
    return Line(X_square, X_Y, Y_square)


def gram_of_changes(updates: Mapping[str, Adapter], reference: Adapter) -> Tensor:
    """Return <Delta_i, Delta_j> (K, K), clients in the order of `updates`.

    It takes the memory of one layer of all clients, four times over in float64, and (2 K rank)^2 numbers.
    """
    clients = list(updates)
    gram = torch.zeros(len(clients), len(clients), dtype=torch.float64)
    for path in dict.fromkeys(path for client in clients for path in updates[client].layers):
        owners = [index for index, client in enumerate(clients) if path in updates[client].layers]
        layers = [updates[clients[index]].layers[path] for index in owners]
        gram[_grid(owners)] += _layer_gram(layers, [Start(reference, path, layer) for layer in layers]).cpu()
    for path in dict.fromkeys(path for client in clients for path in updates[client].dense):
        owners = [index for index, client in enumerate(clients) if path in updates[client].dense]
        start = reference.dense[path].double()
        changes = torch.stack([(updates[clients[index]].dense[path].double() - start).flatten() for index in owners])
        gram[_grid(owners)] += (changes @ changes.T).cpu()
    return gram


def _layer_gram(layers: Sequence[LoraLayer], starts: Sequence[Start]) -> Tensor:
    lefts, rights = [], []
    for layer, start in zip(layers, starts, strict=True):
        A, B, A_0, B_0 = (factor.double() for factor in (layer.A, layer.B, start.A, start.B))
        lefts.append(layer.scaling * torch.cat([B - B_0, B_0], 1))
        rights.append(torch.cat([A, A - A_0]))
    left, right = torch.cat(lefts, 1), torch.cat(rights)
    products = (left.T @ left) * (right @ right.T)
    sizes = torch.tensor([2 * layer.rank for layer in layers])
    owner = torch.repeat_interleave(torch.arange(len(layers)), sizes)
    sums = torch.nn.functional.one_hot(owner, len(layers)).to(products)
    return sums.T @ products @ sums


def _grid(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    index = torch.tensor(indices)
    return index[:, None], index[None, :]


def _inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    return float(((one[0].T @ other[0]) * (one[1] @ other[1].T)).sum())
