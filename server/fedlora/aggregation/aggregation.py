"""From the clients' updates to the global adapter: check that they fit, average, let the method combine, measure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation.centring import centre, weighted_mean
from fedlora.aggregation.lora_fair import LoraFair
from fedlora.aggregation.method import Method
from fedlora.aggregation.report import LayerSquares, measure_layer, summarise
from fedlora.common.aggregation_report import AggregationReport
from fedlora.common.errors import AdapterError


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round's updates become.

    Attributes:
        adapter: where every client starts the next round.
        report: how far it is from the mean of the clients' products.
    """

    adapter: Adapter
    report: AggregationReport


@torch.no_grad()
def aggregate(
    updates: Mapping[str, Adapter],
    *,
    weights: Mapping[str, float] | None = None,
    method: Method = LoraFair(),  # noqa: B008 (frozen)
) -> Aggregate:
    """Return the clients' updates as one adapter, with a report.

    Updates are reduced in the order of their clients' names, so that the order in which they came
    has no effect on any bit. Per layer, A and B are combined by `method`; all other tensors become
    the weighted mean over the clients that have them. The result is float32 (float64 where an update
    is float64); its configuration and scaling are those of the first client by name.

    Args:
        updates: adapters by client name, with the same layers, shapes and scaling, of any dtype.
        weights: a finite, positive weight for every client, on any scale; uniform if None.
        method: how a layer's pairs become one pair.

    Raises:
        AdapterError: layers, shapes or scaling differ between clients, or a value is not finite.
        ValueError: there is no update, or `weights` has other clients or a weight that is not finite and positive.
    """
    p = _normalised(weights, clients=sorted(updates))
    layers: dict[str, LoraLayer] = {}
    squares: dict[str, LayerSquares] = {}
    for path, pairs in _layers_by_path(updates).items():
        layers[path], squares[path] = _combine_layer(path, pairs, p=p, method=method)
    first = updates[min(updates)]
    adapter = Adapter(layers, _mean_dense(updates, p=p), first.config)
    return Aggregate(adapter, summarise(method.name, squares))


def _normalised(weights: Mapping[str, float] | None, *, clients: Sequence[str]) -> dict[str, float]:
    """Return the weights with sum 1, in the order of `clients`."""
    if not clients:
        raise ValueError("no updates; expected at least one client")
    if weights is None:
        return dict.fromkeys(clients, 1 / len(clients))
    if set(weights) != set(clients):
        raise ValueError(f"weights for {sorted(weights)}; expected one for each of {list(clients)}")
    for client in clients:
        if not (math.isfinite(weights[client]) and weights[client] > 0):
            raise ValueError(f"the weight of {client} is {weights[client]}; expected a finite, positive number")
    largest = max(weights.values())  # The sum of very large weights would overflow.
    total = math.fsum(weights[client] / largest for client in clients)
    return {client: weights[client] / largest / total for client in clients}


def _layers_by_path(updates: Mapping[str, Adapter]) -> dict[str, dict[str, LoraLayer]]:
    """Return every layer's pairs by client name, the clients in order, after checking that they fit together."""
    first, *others = sorted(updates)
    for client in others:
        unmatched = updates[first].layers.keys() ^ updates[client].layers.keys()
        for path in sorted(unmatched):
            has, lacks = (first, client) if path in updates[first].layers else (client, first)
            raise AdapterError(f"{path}: a layer of {has} that {lacks} does not have; all must train the same layers")
        for path, layer in updates[first].layers.items():
            _check_pair(path, layer, updates[client].layers[path], clients=f"{first} against {client}")
    return {
        path: {client: updates[client].layers[path] for client in (first, *others)} for path in updates[first].layers
    }


def _check_pair(path: str, expected: LoraLayer, found: LoraLayer, *, clients: str) -> None:
    if expected.A.shape != found.A.shape or expected.B.shape != found.B.shape:
        raise AdapterError(
            f"{path}: {expected.shapes()} against {found.shapes()} ({clients}); "
            "all must train one base model with one rank"
        )
    if expected.scaling != found.scaling:
        raise AdapterError(
            f"{path}: scaling {expected.scaling} against {found.scaling} ({clients}); "
            "all must train with one lora_alpha and use_rslora"
        )


def _combine_layer(
    path: str, pairs: Mapping[str, LoraLayer], *, p: Mapping[str, float], method: Method
) -> tuple[LoraLayer, LayerSquares]:
    scaling = next(iter(pairs.values())).scaling
    update = centre(list(pairs.values()), p=list(p.values()))
    _require_finite(path, update.mean_A, {client: pair.A for client, pair in pairs.items()})
    _require_finite(path, update.mean_B, {client: pair.B for client, pair in pairs.items()})
    A, B = method.combine(update)
    squares = measure_layer(update, A, B, scaling=scaling)
    dtype = update.mean_A.dtype
    if not (math.isfinite(squares.update) and math.isfinite(squares.after)):
        raise AdapterError(
            f"{path}: values so large that their products overflow {dtype}; leave out the largest updates"
        )
    return LoraLayer(A.to(dtype), B.to(dtype), scaling), squares


def _mean_dense(updates: Mapping[str, Adapter], *, p: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the dense tensors' weighted means, each over the clients that have it."""
    owned: dict[str, dict[str, Tensor]] = {}
    for client in p:
        for path, tensor in updates[client].dense.items():
            owned.setdefault(path, {})[client] = tensor
    return {path: _mean_of_owners(path, tensors, p=p) for path, tensors in owned.items()}


def _mean_of_owners(path: str, tensors: Mapping[str, Tensor], *, p: Mapping[str, float]) -> Tensor:
    first = next(iter(tensors))
    for client, tensor in tensors.items():
        if tensor.shape != tensors[first].shape:
            raise AdapterError(
                f"{path}: {tuple(tensors[first].shape)} against {tuple(tensor.shape)} ({first} against {client}); "
                "all must train tensors of one shape"
            )
    mass = math.fsum(p[client] for client in tensors)
    mean = weighted_mean(list(tensors.values()), p=[p[client] / mass for client in tensors])
    _require_finite(path, mean, tensors)
    return mean


def _require_finite(path: str, mean: Tensor, tensors: Mapping[str, Tensor]) -> None:
    """Raise AdapterError if the mean, which no finite tensors can spoil, is not finite."""
    if mean.isfinite().all():
        return
    spoilers = [client for client, tensor in tensors.items() if not tensor.isfinite().all()]
    raise AdapterError(f"{path}: values that are not finite, from {', '.join(spoilers)}; leave these updates out")
