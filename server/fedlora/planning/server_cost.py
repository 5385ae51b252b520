"""What the aggregation takes of the server: measured on random pairs of the model's shapes, scaled up to all."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import Aggregate, ServerOptimizer, aggregate
from fedlora.methods import Method
from fedlora.training.footprint.live_bytes import LiveBytes

# Few clients are measured, and more of them take in proportion more.
_FEW, _SOME = 2, 6
# Of the global adapter: what the round started from, the same packed, and what it gives. Of what is kept as well.
_NUM_COPIES = 3
# Of the one before, where clients are sent it too.
_FORMER_COPIES = 1


@dataclass(frozen=True)
class ServerCost:
    """What a round takes of the server.

    Attributes:
        adapters: bytes of the global adapter's copies.
        kept: bytes of what the server's optimiser keeps from round to round, and of shared moments, in their copies.
        working: bytes of the aggregation of the largest layer.
        updates: bytes of the clients' updates, where they are held in memory: in a simulation.
        seconds: of the aggregation, estimated.
    """

    adapters: int
    kept: int
    working: int
    updates: int
    seconds: float


def server_cost(
    adapter: Adapter,
    method: Method,
    *,
    num_clients: int,
    server_optimizer: ServerOptimizer | None = None,
    keeps_former: bool = False,
    num_shared_moments: int = 0,
) -> ServerCost:
    """Return what a round of `num_clients` takes of the server; `adapter` is asked for its shapes.

    Args:
        keeps_former: whether the adapter that the round before started from is kept, for the clients.
        num_shared_moments: how many tensors of moments clients send beside each one that they train.
    """
    shapes = Counter((layer.rank, layer.A.shape[1], layer.B.shape[0]) for layer in adapter.layers.values())
    few, some = min(_FEW, num_clients), min(_SOME, num_clients)
    working, kept, seconds = 0, 0, 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server does
    try:
        for (rank, in_features, out_features), count in shapes.items():
            updates = {
                str(index): _random_adapter(rank, in_features, out_features, seed=index) for index in range(some)
            }
            step = partial(
                aggregate,
                method=method,
                reference=_random_adapter(rank, in_features, out_features, seed=some),
                server_optimizer=server_optimizer,
            )
            # The first round keeps something, and the ones after it go on from that.
            state = step({"0": updates["0"]}).state if server_optimizer is not None else {}
            kept += count * sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
            peaks = [
                _peak_bytes(partial(step, dict(list(updates.items())[:size]), state=state)) for size in (few, some)
            ]
            slope = (peaks[1] - peaks[0]) / (some - few) if some > few else 0.0
            working = max(working, int(peaks[1] + slope * (num_clients - some)))
            began = time.perf_counter()
            step(updates, state=state)
            seconds += (time.perf_counter() - began) * count * num_clients / some
    finally:
        torch.set_num_threads(threads)
    size = adapter.size_bytes()
    if server_optimizer is not None:
        kept += server_optimizer.num_moments * sum(tensor.nbytes for tensor in adapter.dense_outline.values())
    kept += num_shared_moments * size
    updates_size = (1 + num_shared_moments) * size
    num_copies = _NUM_COPIES + _FORMER_COPIES * keeps_former
    return ServerCost(num_copies * size, _NUM_COPIES * kept, working, num_clients * updates_size, seconds)


def _random_adapter(rank: int, in_features: int, out_features: int, *, seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, in_features, generator=draw), torch.randn(out_features, rank, generator=draw)
    return Adapter({"layer": LoraLayer(A, B, 1.0)})


def _peak_bytes(step: Callable[[], Aggregate]) -> int:
    with LiveBytes() as live:
        step()
    return sum(live.peak.values())
