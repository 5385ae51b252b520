"""From the clients' updates to the global adapter: check that they fit, average, let the method combine, measure."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.dense_change import dense_of
from fedlora.adapters.meaning import require_one_meaning
from fedlora.adapters.settings import fitted_config
from fedlora.aggregation.base_change import accumulated, difference
from fedlora.aggregation.beside import all_paths, mean_dense, mean_of_owners, refuse_spoilers
from fedlora.aggregation.driver import alive, combine
from fedlora.aggregation.report import Measured, measure_layer, summarise
from fedlora.aggregation.robust import Robust, admitted
from fedlora.aggregation.updates import CentredUpdate, LayerUpdates, centre, shares_of, working_dtype
from fedlora.common.aggregation_report import AggregationReport
from fedlora.common.errors import AdapterError
from fedlora.methods import Combined, Method, MethodState, default_method, names_of


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round's updates become.

    Attributes:
        adapter: where every client starts the next round.
        report: how far it is from the mean of the clients' products.
        state: what the method wants to know in the next round, tensors by layer and name; nothing as a rule.
    """

    adapter: Adapter
    report: AggregationReport
    state: MethodState = field(default_factory=dict)


@torch.no_grad()
def aggregate(
    updates: Mapping[str, Adapter],
    *,
    weights: Mapping[str, float] | None = None,
    method: Method | None = None,
    reference: Adapter | None = None,
    state: MethodState | None = None,
    robust: Robust | None = None,
    measure: bool = True,
    device: torch.device | str | None = None,
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
        state: that of the round before, for a method that keeps one.
        robust: what is done to the updates and their weights first; it needs `reference`.
        measure: whether to measure the errors, which takes longer than the methods that average.
        device: where to compute; the result is on the updates' own device.

    Raises:
        AdapterError: the updates do not fit together or to the method, their pairs mean different things, or a value
            is not finite.
        ValueError: there is no update, or `weights` has other clients or a weight that is not finite and positive.
    """
    method = method or default_method()
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
    for path in all_paths([*([reference.layers] if reference else []), *outlines.values()]):
        start = reference.layers.get(path) if reference else None
        owners = {client: outlines[client][path] for client in p if path in outlines[client]}
        if not owners and start is not None:
            layers[path] = start
            continue
        place = torch.device(device) if device is not None else _home(owners)
        like = start or _largest(owners)
        _check_layer(path, owners, like, method=method)
        update = _centred(path, updates, owners, p, like=like, start=start, device=place)
        with _overflow_refused(path, update):
            combined = combine(method, update, states.pop(path, {}))
            _require_finite(path, update, (combined.A, combined.B, *(combined.base_change or ())))
            if wrong := [name for name in combined.state if not name.isidentifier()]:
                raise ValueError(f"{method.name} keeps a state named {wrong[0]!r}; expected a name without dots")
            if combined.state:
                _require_finite(path, update, combined.state.values())
                states[path] = combined.state
            living = alive(combined, update)
            layers[path] = _result(path, living, updates, owners, p=p, like=like)
            if combined.base_change is not None:
                most = method.base_change_rank
                combined = _moved_into_base(path, combined, changes, like, rank=most, device=_home(owners))
                _require_finite(path, update, combined.base_change or ())
            if measure:
                # What came to life has the same product, but for rounding, which a product of zero would show.
                measured[path] = _measure(update, replace(combined, note=_joined(combined.note, living.note)), like)
    config = reference.config if reference is not None else _config(updates, layers)
    adapter = Adapter(layers, mean_dense(updates, p=p, reference=reference), config, changes)
    return Aggregate(adapter, summarise(method.name, measured, notes=notes), states)


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
        if layer.magnitude is not None and not method.takes_dora():
            raise AdapterError(
                f"{path}: {client} trains DoRA, whose magnitudes {method.name} cannot move into the base weights; "
                f"choose a method that leaves them alone: {names_of(lambda kind: kind.takes_dora())}"
            )


def _centred(
    path: str,
    updates: Mapping[str, Adapter],
    owners: Mapping[str, LoraLayer],
    p: Mapping[str, float],
    *,
    like: LoraLayer,
    start: LoraLayer | None,
    device: torch.device,
) -> CentredUpdate:
    """Return the layer's mean and deviations over its owners, after checking that they are finite."""
    dtype = working_dtype([tensor for layer in owners.values() for tensor in (layer.A, layer.B)])
    clients = list(owners)

    def read(index: int) -> tuple[Tensor, Tensor]:
        layer = updates[clients[index]].layers[path]
        A, B = layer.A.to(device, dtype), layer.B.to(device, dtype)
        return (A, B) if layer.scaling == like.scaling else (A, B * (layer.scaling / like.scaling))

    if start is not None:
        A, B = start.A.to(device, dtype), start.B.to(device, dtype)
    else:
        zero = torch.zeros((), dtype=dtype, device=device)
        A, B = zero.expand(like.A.shape), zero.expand(like.B.shape)
    shares = _normalised({client: p[client] for client in clients}, clients=clients)
    ranks = tuple(layer.rank for layer in owners.values())
    update = centre(LayerUpdates(tuple(shares.values()), ranks, read, A, B))
    if not (update.mean_A.isfinite().all() and update.mean_B.isfinite().all()):
        refuse_spoilers(path, clients, lambda client: read(clients.index(client)))
    return update


@contextmanager
def _overflow_refused(path: str, update: CentredUpdate) -> Iterator[None]:
    """Raise AdapterError for what LAPACK says of matrices with infinite values; the updates themselves are finite."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise AdapterError(_too_large(path, update)) from error


def _require_finite(path: str, update: CentredUpdate, tensors: Iterable[Tensor]) -> None:
    """Check that all values are finite, without a second tensor of that size."""
    if not all(end.isfinite() for tensor in tensors if tensor.numel() for end in tensor.aminmax()):
        raise AdapterError(_too_large(path, update))


def _measure(update: CentredUpdate, combined: Combined, like: LoraLayer) -> Measured:
    measured = measure_layer(update, combined, scaling=like.scaling)
    if like.magnitude is not None:
        return replace(measured, note=_joined(measured.note, "without DoRA's magnitudes"))
    return measured


def _too_large(path: str, update: CentredUpdate) -> str:
    return f"{path}: values so large that their products overflow {update.mean_A.dtype}; leave out the largest updates"


def _result(
    path: str,
    combined: Combined,
    updates: Mapping[str, Adapter],
    owners: Mapping[str, LoraLayer],
    *,
    p: Mapping[str, float],
    like: LoraLayer,
) -> LoraLayer:
    """Return the layer of the global adapter: the method's pair, and the means of what else the layer has."""

    def mean(name: str, part: str, *, scaled: bool) -> Tensor | None:
        clients = [client for client, layer in owners.items() if getattr(layer, part) is not None]

        def read(client: str) -> Tensor:
            layer = updates[client].layers[path]
            vector: Tensor = getattr(layer, part)
            if scaled and layer.scaling != like.scaling:
                return vector.to(working_dtype([vector])) * (layer.scaling / like.scaling)
            return vector

        return mean_of_owners(f"{path}.{name}", clients, read, p=p) if clients else None

    device = _home(owners)
    dtype = working_dtype([tensor for layer in owners.values() for tensor in (layer.A, layer.B)])
    return LoraLayer(
        combined.A.to(device, dtype),
        combined.B.to(device, dtype),
        like.scaling,
        mean("lora_B.bias", "bias", scaled=True),
        mean("lora_magnitude_vector", "magnitude", scaled=False),
        like.is_embedding,
    )


def _home(owners: Mapping[str, LoraLayer]) -> torch.device:
    """Return the device that the layer's updates are on; what is on disk is read to the CPU."""
    device = next(iter(owners.values())).A.device
    return torch.device("cpu") if device.type == "meta" else device


def _moved_into_base(
    path: str,
    combined: Combined,
    changes: dict[str, LoraLayer],
    like: LoraLayer,
    *,
    rank: int | None,
    device: torch.device,
) -> Combined:
    """Add the method's change of the base weight to `changes`, and return what it has got of it in its place.

    A change that is zero is none: nothing would travel but zeros, and an adapter cannot hold a pair without rows.
    """
    left, right = combined.base_change or (like.B[:, :0], like.A[:0])
    added = LoraLayer(right.to(device), (left * like.scaling).to(device), 1.0, is_embedding=like.is_embedding)
    before = changes.pop(path, None)
    rank_before = 0 if before is None else before.rank
    change = accumulated(before, added, rank=rank)
    if change.A.any() and change.B.any():
        changes[path] = change
    if rank is None or change.rank == rank_before + added.rank or dense_of(change) is not None:
        return combined
    kept_left, kept_right = difference(before, change)
    note = f"the change of the base weights is the best of rank {rank}; the error after is the rest"
    kept = (kept_left / like.scaling).to(left), kept_right.to(right)
    return replace(combined, base_change=kept, note=_joined(combined.note, note))


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, notes)))


def _config(updates: Mapping[str, Adapter], layers: Mapping[str, LoraLayer]) -> dict[str, object]:
    """Return the configuration of the first client by name among those of the largest rank, fit for `layers`."""
    ranks = {
        client: max((layer.rank for layer in updates[client].outline.values()), default=0) for client in sorted(updates)
    }
    return fitted_config(updates[max(ranks, key=ranks.__getitem__)].config, layers)
