"""From the clients' updates to the global adapter: check that they fit, and aggregate them layer by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.meaning import require_one_meaning
from fedlora.adapters.settings import fitted_config
from fedlora.aggregation.beside import all_paths, mean_dense
from fedlora.aggregation.kept import KEPT_BYTES
from fedlora.aggregation.layer_aggregate import ClientLayers, aggregate_layer
from fedlora.aggregation.report import Measured, summarise
from fedlora.aggregation.robust import Robust, admitted
from fedlora.aggregation.server_optimizer import ServerOptimizer, require_step, stepped
from fedlora.aggregation.updates import shares_of
from fedlora.common.aggregation_report import AggregationReport, ServerStep
from fedlora.common.errors import AdapterError
from fedlora.methods import Method, MethodState, default_method, names_of


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round's updates become.

    Attributes:
        adapter: where every client starts the next round.
        report: how far it is from the mean of the clients' products.
        state: what the method and the server's optimiser want to know in the next round, tensors by layer and name;
            nothing as a rule.
        p: by client, the weight with which it has counted, with sum 1; who was left out is not among them.
    """

    adapter: Adapter
    report: AggregationReport
    state: MethodState = field(default_factory=dict)
    p: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def aggregate(
    updates: Mapping[str, Adapter],
    *,
    weights: Mapping[str, float] | None = None,
    method: Method | None = None,
    reference: Adapter | None = None,
    state: MethodState | None = None,
    robust: Robust | None = None,
    server_optimizer: ServerOptimizer | None = None,
    measure: bool = True,
    device: torch.device | str | None = None,
    kept_bytes: int | None = None,
) -> Aggregate:
    """Return the clients' updates as one adapter, with a report.

    Updates are reduced in the order of their clients' names, so that the order in which they came
    has no effect on any bit. Per layer, A and B are combined by `method`; all other tensors become
    the weighted mean over the clients that have them. The clients are read one after the other and
    layer by layer, so that adapters from `open_adapter` need not fit into memory.

    Clients may have different ranks, scalings and layers. A layer has the largest rank of its
    clients, and the scaling of the first of these by name; a layer that only some have is theirs
    alone. The result is float32 (float64 where an update is float64), its configuration that of
    the first client by name among those of the largest rank, with the ranks and alphas it needs.

    Args:
        updates: adapters by client name, of any dtype.
        weights: a finite, positive weight for every client, on any scale; uniform if None.
        method: how a layer's pairs become one pair; LoRA-FAIR's way if None.
        reference: the adapter that the round started from, if there was one. The result then has its layers, ranks,
            scalings and configuration; what no client has stays as it was; and a change of the base weights adds up.
        state: that of the round before, for a method or an optimiser that keeps one.
        robust: what is done to the updates and their weights first; it needs `reference`.
        server_optimizer: how the server steps from `reference`, which it needs, to what the method makes of the
            updates. What the report measures is the method's own result.
        measure: whether to measure the errors, which takes longer than the methods that average.
        device: where to compute; the result is on the updates' own device.
        kept_bytes: the most of a layer's clients that is kept between the passes over them; what is beyond it is read
            again, and no bit differs. If None, 16 MiB where errors are measured, which takes several times as much of
            a large layer anyway, and nothing where they are not, in the least memory.

    Raises:
        AdapterError: the updates do not fit together or to the method, their pairs mean different things, or a value
            is not finite.
        ValueError: there is no update, or `weights` has other clients or a weight that is not finite and positive; or
            the optimiser does not go with the method.
    """
    method = method or default_method()
    if server_optimizer is not None:
        require_step(method)
        if reference is None:
            raise ValueError("a server optimiser needs `reference`, the adapter that the round started from")
    p = _normalised(weights, clients=sorted(updates))
    started = {} if reference is None else {"the round's start": reference.config}
    require_one_meaning(started | {client: updates[client].config for client in p})
    notes: tuple[str, ...] = ()
    if robust is not None:
        if reference is None:
            raise ValueError("robust aggregation needs `reference`, the adapter that the round started from")
        updates, p, notes = admitted(updates, p, reference=reference, robust=robust)
    layers: dict[str, LoraLayer] = {}
    changes: dict[str, LoraLayer] = dict(reference.base_change) if reference else {}
    measured: dict[str, Measured] = {}
    states: dict[str, Mapping[str, Tensor]] = dict(state or {})
    outlines = {client: updates[client].outline for client in p}
    place = None if device is None else torch.device(device)
    most = (KEPT_BYTES if measure else 0) if kept_bytes is None else kept_bytes
    for path in all_paths([*([reference.layers] if reference else []), *outlines.values()]):
        start = reference.layers.get(path) if reference else None
        owners = {client: outlines[client][path] for client in p if path in outlines[client]}
        if not owners and start is not None:
            layers[path] = start
            continue
        like = start or _largest(owners)
        _check_layer(path, owners, like, method=method)
        clients = ClientLayers(
            path,
            {client: p[client] for client in owners},
            owners,
            partial(_layer_of, updates, path),
            like,
            start,
            changes.pop(path, None),
            states.pop(path, {}),
        )
        found = aggregate_layer(clients, method, measure=measure, device=place, kept_bytes=most)
        layers[path] = found.layer
        if found.base_change is not None:
            changes[path] = found.base_change
        if found.state:
            states[path] = found.state
        if found.measured is not None:
            measured[path] = found.measured
    config = reference.config if reference is not None else _config(updates, layers)
    adapter = Adapter(layers, mean_dense(updates, p=p, reference=reference), config, changes)
    step: ServerStep | None = None
    if server_optimizer is not None and reference is not None:
        adapter, states, step = stepped(adapter, reference, states, server_optimizer)
    return Aggregate(adapter, summarise(method.name, measured, notes=notes, server_step=step), states, p)


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
    return dict(zip(clients, shares_of([weights[client] for client in clients]), strict=True))


def _largest(owners: Mapping[str, LoraLayer]) -> LoraLayer:
    """Return the layer of the largest rank, of these the first by client name."""
    return max(owners.values(), key=lambda layer: layer.rank)


def _check_layer(path: str, owners: Mapping[str, LoraLayer], like: LoraLayer, *, method: Method) -> None:
    expected = (like.A.shape[1], like.B.shape[0], like.is_embedding)
    for client, layer in owners.items():
        if (layer.A.shape[1], layer.B.shape[0], layer.is_embedding) != expected or layer.rank > like.rank:
            raise AdapterError(
                f"{path}: {layer.shapes()} of {client} against {like.shapes()}; all must train one base model, "
                "with at most the rank of the round's start"
            )
        if layer.rank != like.rank and not method.combines_mixed_ranks():
            raise AdapterError(
                f"{path}: {layer.shapes()} of {client} against {like.shapes()}; {method.name} combines pairs of "
                f"one rank only, choose a method that takes more: {names_of(lambda kind: kind.combines_mixed_ranks())}"
            )
        if layer.magnitude is not None and not method.takes_dora():
            raise AdapterError(
                f"{path}: {client} trains DoRA, whose magnitudes {method.name} cannot move into the base weights; "
                f"choose a method that leaves them alone: {names_of(lambda kind: kind.takes_dora())}"
            )


def _layer_of(updates: Mapping[str, Adapter], path: str, client: str) -> LoraLayer:
    return updates[client].layers[path]


def _config(updates: Mapping[str, Adapter], layers: Mapping[str, LoraLayer]) -> dict[str, object]:
    """Return the configuration of the first client by name among those of the largest rank, fit for `layers`."""
    ranks = {
        client: max((layer.rank for layer in updates[client].outline.values()), default=0) for client in sorted(updates)
    }
    return fitted_config(updates[max(ranks, key=ranks.__getitem__)].config, layers)
