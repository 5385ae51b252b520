"""What an adapter takes on the wire, by method, round and direction: arithmetic on shapes. Pure."""

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.keys import is_trained, to_state_dict
from fedlora.adapters.moments import Form, moment_key, trained_tensors
from fedlora.methods import Method

# Of a tensor's entry in the header beside its name: type, shape, offsets.
_ENTRY_BYTES = 70
# Of the header beside its entries and the configuration: precision and the digest of the reference.
_HEADER_BYTES = 170


@dataclass(frozen=True)
class Traffic:
    """The bytes of a round for one client under one method.

    Attributes:
        up: to the server.
        down: to the client, as a difference to an adapter that it has; without one, and in a simulation, it is float32.
        down_last: to the client, in the last round: more where the base weights have changed.
        up_other: to the server in the rounds between, where those train another factor; else as `up`.
        former: to a client that sat out the round before, beside `down_last`: what that started from, whole; 0 where
            clients do not need it.
    """

    method: str
    up: int
    down: int
    down_last: int
    up_other: int
    former: int = 0


def traffic_of(
    adapter: Adapter,
    method: Method,
    *,
    num_clients: int,
    num_rounds: int,
    precision: str,
    init_changes_base: bool,
    needs_former: bool = False,
    form: Form | None = None,
) -> Traffic:
    """Return the bytes that a client exchanges in a round.

    Args:
        adapter: in shapes.
        method: of the aggregation.
        num_clients: whose updates are aggregated in a round.
        num_rounds: of the run.
        precision: of the differences: float32, bfloat16 or int8.
        init_changes_base: whether the first pairs are taken out of the base weights, as a change of the same rank.
        needs_former: whether clients need what the round before started from too, and have it if they took part.
        form: what is shared of the clients' optimisers: sent with each update, and with all but the first adapter.
    """
    sizes = {name: _wire_bytes(name, tensor, precision) for name, tensor in to_state_dict(adapter).items()}
    header = len(json.dumps(dict(adapter.config))) + _HEADER_BYTES
    down = header + sum(sizes.values())

    def up(number: int) -> int:
        trains = method.plan(number).trains
        sent = sum(size for name, size in sizes.items() if is_trained(name, trains))
        return header + sent + moments(number)

    def moments(number: int) -> int:
        """Return the bytes of the moments of what a round trains."""
        plan = method.plan(number)
        trained = {} if plan.starts_fresh else trained_tensors(to_state_dict(adapter), plan.trains)
        return sum(
            _moment_bytes(moment_key(key, name), tensor if is_whole else None, precision)
            for key, tensor in trained.items()
            for name, is_whole in (form or {}).items()
        )

    def added(layer: LoraLayer, number: int) -> int:
        """Return the rank of all changes before the round, side by side."""
        return method.added_base_rank(layer.rank, num_clients) * (number - 1) + init_changes_base * layer.rank

    def rank_of(layer: LoraLayer, number: int) -> int:
        """Return the rank of a layer's change at the start of a round; that of the weight itself where it is dense."""
        return _kept_rank(layer, added(layer, number), bound=method.base_change_rank)

    def changed(number: int) -> int:
        total = 0
        for layer in adapter.layers.values():
            rank = rank_of(layer, number)
            # Only a change of the shape that it had in the round before goes as a difference to it.
            is_known = number > 1 and rank == rank_of(layer, number - 1)
            total += _change_bytes(layer, rank=rank, precision=precision if is_known else "float32")
        return total

    former = 0
    if needs_former and num_rounds > 1 and method.has_last_change:
        ranks = [(layer, rank_of(layer, num_rounds - 1)) for layer in adapter.layers.values()]
        former = header + sum(_wire_bytes(name, tensor, "float32") for name, tensor in to_state_dict(adapter).items())
        former += sum(_change_bytes(layer, rank=rank, precision="float32") for layer, rank in ranks)
    sent = moments(num_rounds) if num_rounds > 1 else 0
    own = header + sent if sent else 0
    return Traffic(method.name, up(1), down + changed(1) + own, down + changed(num_rounds) + own, up(2), former)


def _moment_bytes(key: str, tensor: Tensor | None, precision: str) -> int:
    """Return the bytes of a moment of a tensor's shape, which always goes whole, or of a single number."""
    number = 4 if precision == "float32" or tensor is None else 2
    return number * (1 if tensor is None else tensor.numel()) + len(key) + _ENTRY_BYTES


def _wire_bytes(name: str, tensor: Tensor, precision: str) -> int:
    return _number_bytes(tensor, precision) + (1 + _has_scales(tensor, precision)) * (len(name) + _ENTRY_BYTES)


def _number_bytes(tensor: Tensor, precision: str) -> int:
    if _has_scales(tensor, precision):
        return tensor.numel() + 4 * _num_scales(tensor)
    return (4 if precision == "float32" else 2) * tensor.numel()


def _has_scales(tensor: Tensor, precision: str) -> bool:
    return precision == "int8" and 4 * _num_scales(tensor) < tensor.numel()


def _num_scales(tensor: Tensor) -> int:
    return tensor[..., 0].numel() if tensor.dim() else 1


def _kept_rank(layer: LoraLayer, rank: int, *, bound: int | None) -> int:
    """Return the rank that the aggregation keeps of a change of that rank."""
    sides = layer.B.shape[0], layer.A.shape[1]
    if bound is not None and bound * sum(sides) < math.prod(sides):
        return min(rank, bound)
    return rank if rank * sum(sides) <= math.prod(sides) else min(sides)


def _change_bytes(layer: LoraLayer, *, rank: int, precision: str) -> int:
    """Return the bytes of a weight's change of a rank: two factors, or one matrix where that is smaller."""
    out_features, in_features = layer.B.shape[0], layer.A.shape[1]
    shapes = [(rank, in_features), (out_features, rank)] if rank else []
    if rank == min(out_features, in_features):
        shapes = [(out_features, in_features)]
    return sum(_number_bytes(torch.empty(shape, device="meta"), precision) for shape in shapes)
