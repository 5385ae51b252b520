"""One layer of a round, from its clients' pairs to the global pair: average, let the method combine, measure."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedlora.adapters import LoraLayer
from fedlora.aggregation.base_change import accumulated, bounds, difference
from fedlora.aggregation.beside import mean_of_owners, refuse_spoilers
from fedlora.aggregation.driver import alive, combine
from fedlora.aggregation.kept import kept
from fedlora.aggregation.report import Measured, measure_layer
from fedlora.aggregation.updates import CentredUpdate, LayerUpdates, centre, shares_of, working_dtype
from fedlora.common.errors import AdapterError
from fedlora.methods import Combined, Method


@dataclass(frozen=True, eq=False)
class ClientLayers:
    """One layer of the clients that have it.

    Attributes:
        path: in the base model.
        p: their weights by name, in the order in which they are reduced; with any sum.
        outlines: their layers, to be asked for shapes, types and scaling only.
        read: returns a client's layer.
        like: has the shapes and the scaling of the result.
        start: what the round started from, if there was something.
        base_change: by what the base weight has changed since the run's start, if by anything.
        state: what the method wanted to know of the layer after the round before.
    """

    path: str
    p: Mapping[str, float]
    outlines: Mapping[str, LoraLayer]
    read: Callable[[str], LoraLayer]
    like: LoraLayer
    start: LoraLayer | None = None
    base_change: LoraLayer | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """What to compute in."""
        return working_dtype([tensor for layer in self.outlines.values() for tensor in (layer.A, layer.B)])

    @property
    def home(self) -> torch.device:
        """The device that the layer's updates are on; what is on disk is read to the CPU."""
        device = next(iter(self.outlines.values())).A.device
        return torch.device("cpu") if device.type == "meta" else device


@dataclass(frozen=True, eq=False)
class LayerAggregate:
    """What the layer becomes, and what is kept of it; `measured` is None where nothing was."""

    layer: LoraLayer
    base_change: LoraLayer | None
    state: Mapping[str, Tensor]
    measured: Measured | None


def aggregate_layer(
    clients: ClientLayers, method: Method, *, measure: bool, device: torch.device | None, kept_bytes: int
) -> LayerAggregate:
    """Return the layer as the method combines it.

    Args:
        measure: whether to measure the errors.
        device: where to compute; where the updates are if None.
        kept_bytes: see `kept`.

    Raises:
        AdapterError: a value is not finite, or too large to be multiplied.
    """
    like, base_change, measured = clients.like, clients.base_change, None
    clients = replace(clients, read=kept(_in_one_scaling(clients, device or clients.home), max_bytes=kept_bytes))
    update = _centred(clients, device or clients.home)
    with _overflow_refused(clients.path, update):
        known = _over_scaling(clients, update) if method.base_change_rank is not None else None
        combined = combine(method, update, clients.state, known)
        _require_finite(clients.path, update, (combined.A, combined.B, *(combined.base_change or ())))
        if wrong := [name for name in combined.state if not name.isidentifier()]:
            raise ValueError(f"{method.name} keeps a state named {wrong[0]!r}; expected a name without dots")
        _require_finite(clients.path, update, combined.state.values())
        living = alive(combined, update)
        layer = _with_vectors(living, clients)
        if combined.base_change is not None:
            combined, base_change = _moved_into_base(combined, clients, rank=method.base_change_rank)
            _require_finite(clients.path, update, combined.base_change or ())
        if measure:
            # What came to life has the same product, but for rounding, which a product of zero would show.
            dora = "" if like.magnitude is None else "without DoRA's magnitudes"
            noted = replace(combined, note=_joined(combined.note, living.note, dora))
            measured = measure_layer(update, noted, scaling=like.scaling)
    return LayerAggregate(layer, base_change, combined.state, measured)


def _in_one_scaling(clients: ClientLayers, device: torch.device) -> Callable[[str], LoraLayer]:
    """Return what reads a client's layer on that device, in the type to compute in and the scaling of the result."""
    dtype = clients.dtype

    def read(client: str) -> LoraLayer:
        layer = clients.read(client)
        A, B, bias = layer.A.to(device, dtype), layer.B.to(device, dtype), layer.bias
        if layer.scaling != clients.like.scaling:
            ratio = layer.scaling / clients.like.scaling
            B, bias = B * ratio, None if bias is None else bias.to(working_dtype([bias])) * ratio
        return replace(layer, A=A, B=B, bias=bias, scaling=clients.like.scaling)

    return read


def _centred(clients: ClientLayers, device: torch.device) -> CentredUpdate:
    """Return the layer's mean and deviations, after checking that they are finite."""
    names = list(clients.p)
    start, dtype = clients.start, clients.dtype

    def read(index: int) -> tuple[Tensor, Tensor]:
        layer = clients.read(names[index])
        return layer.A, layer.B

    if start is not None:
        A, B = start.A.to(device, dtype), start.B.to(device, dtype)
    else:
        zero = torch.zeros((), dtype=dtype, device=device)
        A, B = zero.expand(clients.like.A.shape), zero.expand(clients.like.B.shape)
    ranks = tuple(clients.outlines[name].rank for name in names)
    update = centre(LayerUpdates(tuple(shares_of(list(clients.p.values()))), ranks, read, A, B))
    if not (update.mean_A.isfinite().all() and update.mean_B.isfinite().all()):
        refuse_spoilers(clients.path, names, lambda name: read(names.index(name)))
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


def _too_large(path: str, update: CentredUpdate) -> str:
    return f"{path}: values so large that their products overflow {update.mean_A.dtype}; leave out the largest updates"


def _with_vectors(combined: Combined, clients: ClientLayers) -> LoraLayer:
    """Return the layer of the global adapter: the method's pair, and the means of what else the layer has."""

    def mean(name: str, part: str) -> Tensor | None:
        def read(client: str) -> Tensor:
            vector: Tensor = getattr(clients.read(client), part)
            return vector

        owners = [client for client, layer in clients.outlines.items() if getattr(layer, part) is not None]
        return mean_of_owners(f"{clients.path}.{name}", owners, read, p=clients.p) if owners else None

    return LoraLayer(
        combined.A.to(clients.home, clients.dtype),
        combined.B.to(clients.home, clients.dtype),
        clients.like.scaling,
        mean("lora_B.bias", "bias"),
        mean("lora_magnitude_vector", "magnitude"),
        clients.like.is_embedding,
    )


def _over_scaling(clients: ClientLayers, update: CentredUpdate) -> tuple[Tensor, Tensor] | None:
    change = clients.base_change
    if change is None:
        return None
    return change.B.to(update.mean_B) / clients.like.scaling, change.A.to(update.mean_A)


def _moved_into_base(
    combined: Combined, clients: ClientLayers, *, rank: int | None
) -> tuple[Combined, LoraLayer | None]:
    """Return the base weight's whole change with the method's, and the method's as what it has got of it.

    A change that is zero is none: nothing would travel but zeros, and an adapter cannot hold a pair without rows.
    """
    like, before = clients.like, clients.base_change
    left, right = combined.base_change or (like.B[:, :0], like.A[:0])
    added = LoraLayer(
        right.to(clients.home), (left * like.scaling).to(clients.home), 1.0, is_embedding=like.is_embedding
    )
    change = accumulated(before, added, rank=rank)
    kept = change if change.A.any() and change.B.any() else None
    if not bounds(rank, added) or change.rank == (before.rank if before else 0) + added.rank:
        return combined, kept
    kept_left, kept_right = difference(before, change)
    note = f"the change of the base weights is the best of rank {rank}; the error after is the rest"
    got = (kept_left / like.scaling).to(left), kept_right.to(right)
    return replace(combined, base_change=got, note=_joined(combined.note, note)), kept


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, notes)))
