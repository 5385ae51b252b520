"""What an adapter takes on the wire, by method, round and direction: arithmetic on shapes. Pure."""

import json
from dataclasses import dataclass

from torch import Tensor

from fedlora.adapters import Adapter
from fedlora.adapters.keys import factor_of, to_state_dict
from fedlora.aggregation import Method

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
    """

    method: str
    up: int
    down: int
    down_last: int
    up_other: int


def traffic_of(
    adapter: Adapter, method: Method, *, num_clients: int, num_rounds: int, precision: str, init_changes_base: bool
) -> Traffic:
    """Return the bytes that a client exchanges in a round.

    Args:
        adapter: in shapes.
        method: of the aggregation.
        num_clients: whose updates are aggregated in a round.
        num_rounds: of the run.
        precision: of the differences: float32, bfloat16 or int8.
        init_changes_base: whether the first pairs are taken out of the base weights, as a change of the same rank.
    """
    sizes = {name: _wire_bytes(name, tensor, precision) for name, tensor in to_state_dict(adapter).items()}
    header = len(json.dumps(dict(adapter.config))) + _HEADER_BYTES
    down = header + sum(sizes.values())

    def up(number: int) -> int:
        trains = method.plan(number).trains
        return header + sum(size for name, size in sizes.items() if all(one in trains for one in factor_of(name)))

    def changed(number: int) -> int:
        added = num_clients - (method.name == "fedex_lora") if method.changes_base else 0
        times = added * (number - 1) + init_changes_base
        return sum(_change_bytes(layer.A, layer.B, rank=times * layer.rank) for layer in adapter.layers.values())

    return Traffic(method.name, up(1), down + changed(1), down + changed(num_rounds), up(2))


def _wire_bytes(name: str, tensor: Tensor, precision: str) -> int:
    entry = len(name) + _ENTRY_BYTES
    if precision == "float32":
        return 4 * tensor.numel() + entry
    num_scales = tensor[..., 0].numel() if tensor.dim() else 1
    if precision == "int8" and 4 * num_scales < tensor.numel():
        return tensor.numel() + 4 * num_scales + 2 * entry
    return 2 * tensor.numel() + entry


def _change_bytes(A: Tensor, B: Tensor, *, rank: int) -> int:
    """Return the bytes of a weight's change of a rank: float32, because its shape is new in every round."""
    out_features, in_features = B.shape[0], A.shape[1]
    if rank * (in_features + out_features) > in_features * out_features:
        rank = min(in_features, out_features)
    return 4 * rank * (in_features + out_features)
