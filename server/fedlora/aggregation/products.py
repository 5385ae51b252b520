"""How far each update moved the model: norms, limits and inner products of changes of the effective weights.

An update's factors do not say what it does, its products do. Against the round's start (A_s, B_s) an
update changes a layer's weight by s times

    Delta = B A - B_s A_s = [B - B_s, B_s] [A; A - A_s],

of which the right-hand side is used: it takes differences before anything is multiplied, so that
nothing cancels where an update is close to its start. Along the line from the start to the update,
with dA = A - A_s and dB = B - B_s,

    Delta(g) = g X + g^2 Y,    X = dB A_s + B_s dA,    Y = dB dA.

Everything is found in float64 from products of rank x rank; no Delta is formed. Dense tensors, biases
and magnitudes count with their plain differences. What a client does not have, it did not change. A
client of a smaller rank started from the first rows of A and columns of B.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation.transformed import transformed
from fedlora.aggregation.updates import working_dtype
from fedlora.common.errors import AdapterError


@dataclass(frozen=True)
class Move:
    """The change that an update makes, g X + g^2 Y at the share g of its way, as |X|^2, <X, Y> and |Y|^2."""

    linear_square: float
    inner: float
    quadratic_square: float

    def norm(self, share: float = 1.0) -> float:
        """Return |Delta| after this share of the way."""
        square = self.linear_square + share * (2 * self.inner + share * self.quadratic_square)
        return share * math.sqrt(max(0.0, square)) if math.isfinite(square) else math.inf

    def share_within(self, limit: float) -> float:
        """Return a share of the way at which the norm is `limit`, which is less than the norm of the whole.

        It is bisected: the norm is continuous and 0 at 0, but where X and Y oppose each other it may rise and fall.
        """
        low, high = 0.0, 1.0
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if self.norm(middle) <= limit else (low, middle)
        return low


@torch.no_grad()
def product_moves(updates: Mapping[str, Adapter], reference: Adapter) -> dict[str, float]:
    """Return how far each client moved the effective weights away from `reference`, |Delta_i|, by client.

    Infinite where a value is not finite, or so large that the squares of its products overflow float64. The clients
    are read one by one, layer by layer.

    Raises:
        AdapterError: an update does not fit to `reference`.
    """
    for client, update in updates.items():
        if found := misfit(update, reference):
            raise AdapterError(f"{client}: {found}; all must train what the round started from")
    return {client: move_of(update, reference).norm() for client, update in updates.items()}


class Moving:
    """Adds up the change that an update makes, part by part."""

    def __init__(self) -> None:
        self._linear: list[float] = []
        self._inner: list[float] = []
        self._quadratic: list[float] = []

    def add_layer(self, layer: LoraLayer, reference: LoraLayer) -> None:
        """Add a layer of the update, of the rank of `reference` or less."""
        A, B = start_of(reference, layer)
        rank = A.shape[0]
        dA, dB = layer.A.double() - A, layer.B.double() - B
        left, right = torch.cat([dB, B], 1), torch.cat([A, dA])
        weight, gram = layer.scaling**2, left.T @ left
        self._linear.append(weight * float((gram * (right @ right.T)).sum()))
        self._inner.append(weight * float((gram[:, :rank] * (right @ dA.T)).sum()))
        self._quadratic.append(weight * float((gram[:rank, :rank] * (dA @ dA.T)).sum()))
        for vector in _vector_changes(layer, reference).values():
            self._linear.append(float(vector.square().sum()))

    def add_dense(self, tensor: Tensor, reference: Tensor) -> None:
        """Add a tensor that is trained whole."""
        self._linear.append(float(_difference(tensor, reference).square().sum()))

    def move(self) -> Move:
        """Return the change of all that was added."""
        sums = (self._linear, self._inner, self._quadratic)
        # fsum raises where infinities of both signs meet.
        return Move(*(math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan for parts in sums))


def move_of(update: Adapter, reference: Adapter) -> Move:
    """Return the change that an update which fits to `reference` makes; it is read once, layer by layer."""
    moving = Moving()
    for path, layer in update.layers.items():
        moving.add_layer(layer, reference.layers[path])
    for path, tensor in update.dense.items():
        moving.add_dense(tensor, reference.dense[path])
    return moving.move()


def pulled_back(update: Adapter, reference: Adapter, share: float) -> Adapter:
    """Return the update after a share of its way from `reference`: of the same ranks, changed as it is read."""

    def layer(path: str, found: LoraLayer) -> LoraLayer:
        start = reference.layers[path]
        A, B = start_of(start, found)
        dtype = working_dtype([found.A, found.B])
        vectors = {part: begin.lerp(end, share).to(dtype) for part, (begin, end, _) in _vectors(found, start).items()}
        A, B = A.lerp(found.A.double(), share), B.lerp(found.B.double(), share)
        return replace(
            found, A=A.to(dtype), B=B.to(dtype), bias=vectors.get("bias"), magnitude=vectors.get("magnitude")
        )

    def dense(path: str, found: Tensor) -> Tensor:
        start = reference.dense[path].to(found.device, torch.float64)
        return start.lerp(found.double(), share).to(working_dtype([found]))

    return transformed(update, layer=layer, dense=dense)


def product_gram(updates: Mapping[str, Adapter], reference: Adapter) -> Tensor:
    """Return the inner products <Delta_i, Delta_j> of all clients, (K, K) in float64, on the CPU.

    It reads each client once and takes the memory of one layer of all clients, twice over, in float64.
    """
    gram = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    cohort = list(updates.values())
    outlines = [update.outline for update in cohort]

    def add(owners: list[int], part: Tensor) -> None:
        index = torch.tensor(owners)
        gram[index[:, None], index] += part

    for path, start in reference.layers.items():
        if owners := [index for index, outline in enumerate(outlines) if path in outline]:
            add(owners, _layer_gram([cohort[index].layers[path] for index in owners], start))
    for path, tensor in reference.dense.items():
        if owners := [index for index, update in enumerate(cohort) if path in update.dense]:
            stacked = torch.stack([_difference(cohort[index].dense[path], tensor).flatten() for index in owners])
            add(owners, (stacked @ stacked.T).cpu())
    return gram


def start_of(reference: LoraLayer, layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return what the client of `layer` started from: A (rank, in_features), B (out_features, rank), in float64.

    `reference` cut to the client's rank, with the scaling of `reference` over the client's folded into B.
    """
    rank, ratio = layer.A.shape[0], reference.scaling / layer.scaling
    A, B = reference.A[:rank].to(layer.A.device, torch.float64), reference.B[:, :rank].to(layer.B.device, torch.float64)
    return A, B if ratio == 1 else B * ratio


def misfit(update: Adapter, reference: Adapter) -> str:
    """Return what of `update` does not fit to `reference`, with names and shapes; empty where all does.

    It may have fewer layers, smaller ranks and other scalings.
    """
    for path, layer in update.outline.items():
        start = reference.layers.get(path)
        if start is None:
            return f"a layer {path}, which the round did not start from"
        fits = (
            layer.A.ndim == layer.B.ndim == 2
            and layer.B.shape[1] == layer.A.shape[0] <= start.A.shape[0]
            and (layer.A.shape[1], layer.B.shape[0], layer.is_embedding)
            == (start.A.shape[1], start.B.shape[0], start.is_embedding)
        )
        if not fits:
            return f"{path}: {layer.shapes()} against {start.shapes()} of the round's start"
        if not (math.isfinite(layer.scaling) and layer.scaling != 0):
            return f"{path}: a scaling of {layer.scaling}"
        for part in ("bias", "magnitude"):
            vector: Tensor | None = getattr(layer, part)
            if vector is not None and vector.shape != (start.B.shape[0],):
                return f"{path}: a {part} {tuple(vector.shape)}; expected ({start.B.shape[0]},)"
    for path, tensor in update.dense.items():
        if path not in reference.dense:
            return f"a tensor {path}, which the round did not start from"
        if tensor.shape != reference.dense[path].shape:
            return f"{path}: {tuple(tensor.shape)} against {tuple(reference.dense[path].shape)} of the round's start"
    return ""


def _vectors(layer: LoraLayer, start: LoraLayer) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return bias and magnitude at the client's start and in its update, and their scaling; those that it has.

    Each is (out_features,) in float64. A bias acts with the layer's scaling, and starts at the reference's over it.
    """
    ratio = start.scaling / layer.scaling
    vectors = {}
    for part, before, scaling in (("bias", ratio, layer.scaling), ("magnitude", 1.0, 1.0)):
        end: Tensor | None = getattr(layer, part)
        begin: Tensor | None = getattr(start, part)
        if end is not None:
            known = torch.zeros_like(end) if begin is None else begin
            vectors[part] = (before * known.to(end.device, torch.float64), end.double(), scaling)
    return vectors


def _vector_changes(layer: LoraLayer, start: LoraLayer) -> dict[str, Tensor]:
    return {part: scaling * (end - begin) for part, (begin, end, scaling) in _vectors(layer, start).items()}


def _difference(tensor: Tensor, start: Tensor) -> Tensor:
    return tensor.double() - start.to(tensor.device, torch.float64)


def _layer_gram(layers: list[LoraLayer], start: LoraLayer) -> Tensor:
    """Return the clients' inner products in one layer, (K, K) on the CPU, block by block: 2 rank x 2 K rank at most."""
    lefts, rights = [], []
    for layer in layers:
        A, B = start_of(start, layer)
        wide_A, wide_B = layer.A.double(), layer.B.double()
        lefts.append(layer.scaling * torch.cat([wide_B - B, B], 1))
        rights.append(torch.cat([wide_A, wide_A - A]))
    device = lefts[0].device
    all_left, all_right = torch.cat([left.to(device) for left in lefts], 1), torch.cat([R.to(device) for R in rights])
    blocks = torch.tensor([index for index, left in enumerate(lefts) for _ in range(left.shape[1])], device=device)
    gram = all_left.new_zeros(len(layers), len(layers))
    begin = 0
    for index, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        # Those before it have their product with it already.
        products = (left.to(device).T @ all_left[:, begin:]) * (right.to(device) @ all_right[begin:].T)
        gram[index].index_add_(0, blocks[begin:], products.sum(0))
        begin += left.shape[1]
    gram = gram.triu() + gram.triu(1).T
    changes = [_vector_changes(layer, start) for layer in layers]
    for part in ("bias", "magnitude"):
        zero = torch.zeros(start.B.shape[0], dtype=torch.float64, device=device)
        stacked = torch.stack([change[part].to(device) if part in change else zero for change in changes])
        gram += stacked @ stacked.T
    return gram.cpu()
