"""What the aggregation takes of the server: measured on random pairs of the model's shapes, scaled up to all."""

import time
from collections import Counter
from dataclasses import dataclass

import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import aggregate
from fedlora.methods import Method
from fedlora.training.footprint.live_bytes import LiveBytes

# Few clients are measured, and more of them take in proportion more.
_FEW, _SOME = 2, 6
_NUM_COPIES = 3  # of the global adapter: what the round started from, the same packed, and what it gives
_FORMER_COPIES = 1  # of the one before, where clients are sent it too


@dataclass(frozen=True)
class ServerCost:
    """What a round takes of the server.

    Attributes:
        adapters: bytes of the global adapter's copies.
        working: bytes of the aggregation of the largest layer.
        updates: bytes of the clients' updates, where they are held in memory: in a simulation.
        seconds: of the aggregation, estimated.
    """

    adapters: int
    working: int
    updates: int
    seconds: float


def server_cost(adapter: Adapter, method: Method, *, num_clients: int, keeps_former: bool = False) -> ServerCost:
    """Return what a round of `num_clients` takes of the server; `adapter` is asked for its shapes.

    Args:
        keeps_former: whether the adapter that the round before started from is kept, for the clients.
    """
    shapes = Counter((layer.rank, layer.A.shape[1], layer.B.shape[0]) for layer in adapter.layers.values())
    few, some = min(_FEW, num_clients), min(_SOME, num_clients)
    working, seconds = 0, 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server does
    try:
        for (rank, in_features, out_features), count in shapes.items():
            updates = {
                str(index): _random_adapter(rank, in_features, out_features, seed=index) for index in range(some)
            }
            peaks = [_peak_bytes(dict(list(updates.items())[:size]), method) for size in (few, some)]
            slope = (peaks[1] - peaks[0]) / (some - few) if some > few else 0.0
            working = max(working, int(peaks[1] + slope * (num_clients - some)))
            began = time.perf_counter()
            aggregate(updates, method=method, reference=updates["0"])
            seconds += (time.perf_counter() - began) * count * num_clients / some
    finally:
        torch.set_num_threads(threads)
    size = adapter.size_bytes()
    num_copies = _NUM_COPIES + _FORMER_COPIES * keeps_former
    return ServerCost(num_copies * size, working, num_clients * size, seconds)


def _random_adapter(rank: int, in_features: int, out_features: int, *, seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, in_features, generator=draw), torch.randn(out_features, rank, generator=draw)
    return Adapter({"layer": LoraLayer(A, B, 1.0)})


def _peak_bytes(updates: dict[str, Adapter], method: Method) -> int:
    with LiveBytes() as live:
        aggregate(updates, method=method, reference=next(iter(updates.values())))
    return sum(live.peak.values())
