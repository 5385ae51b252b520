"""What the clients of a round start from: the global adapter, or fresh pairs, each client at its own rank. Pure."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.moments import Form, Moments, cut_moments, pack_moments, trained_tensors
from fedlora.adapters.settings import fitted_config
from fedlora.common.messages import TrainRequest
from fedlora.common.packed_file import Packed, wire_bytes
from fedlora.common.random_streams import stream
from fedlora.methods import Method, RoundPlan


@dataclass(frozen=True, eq=False)
class Start:
    """What a client starts from, and the request that carries it, as it is asked for the first time."""

    adapter: Adapter
    request: TrainRequest

    def wire_bytes(self, *, has_former: bool) -> int:
        """Return the bytes of the packed adapters that a client needs, which may have the former one already."""
        former = 0 if has_former else wire_bytes(self.request.former)
        return wire_bytes(self.request.adapter) + wire_bytes(self.request.moments) + former

    def asked(self, attempt: int) -> TrainRequest:
        """Return the request as it is sent for the `attempt`-th time, from 0."""
        return replace(self.request, attempt=attempt)


@dataclass(frozen=True, eq=False)
class SharedMoments:
    """The moments that the clients' optimisers go on with, and what of them is shared."""

    moments: Moments
    form: Form


@dataclass(frozen=True, eq=False)
class Former:
    """What the round before started from, where clients need it: the adapter, its packed form, and who has it still."""

    adapter: Adapter
    packed: Packed
    sent_to: Collection[str]


class Starts:
    """The starts of a round, by rank: of each the adapter is packed once."""

    def __init__(
        self,
        adapter: Adapter,
        packed: Packed,
        request: TrainRequest,
        *,
        method: Method,
        former: Former | None = None,
        moments: SharedMoments | None = None,
    ) -> None:
        """`packed` is `adapter`, `request` what is asked for beside it; `method` fits pairs to smaller ranks."""
        self._method = method
        self._former = former
        self._shared = moments
        request = replace(request, adapter=packed, former=former.packed if former else b"")
        self._whole = Start(adapter, replace(request, moments=self._moments(adapter, request)))
        self._by_rank: dict[int, Start] = {}

    @property
    def whole(self) -> Start:
        """The start of a client that trains all of the adapter."""
        return self._whole

    def for_rank(self, rank: int) -> Start:
        """Return the start of a client that says it trains at most `rank`; all of it where ranks may not differ."""
        if not self._method.allows_client_ranks:
            return self._whole
        if rank not in self._by_rank:
            fitted = for_rank(self._whole.adapter, rank, method=self._method)
            is_whole = fitted is self._whole.adapter
            self._by_rank[rank] = self._whole if is_whole else self._smaller(fitted, rank)
        return self._by_rank[rank]

    def bytes_down(self, client: str, rank: int) -> int:
        """Return the bytes of what a client of a rank has to be sent: the former adapter only where it lacks it."""
        has_former = self._former is None or client in self._former.sent_to
        return self.for_rank(rank).wire_bytes(has_former=has_former)

    def _smaller(self, fitted: Adapter, rank: int) -> Start:
        """Return the start of a client of a smaller rank; its former adapter is cut as it was in the round before."""
        former = b"" if self._former is None else pack(for_rank(self._former.adapter, rank, method=self._method))
        request = replace(self._whole.request, adapter=pack(fitted), former=former)
        return Start(fitted, replace(request, moments=self._moments(fitted, request)))

    def _moments(self, adapter: Adapter, request: TrainRequest) -> bytes:
        """Return the moments of what is trained of an adapter, packed."""
        if self._shared is None:
            return b""
        trained = trained_tensors(to_state_dict(replace(adapter, base_change={})), request.trains)
        return pack_moments(cut_moments(self._shared.moments, trained, self._shared.form))


def start_of_round(adapter: Adapter, *, plan: RoundPlan, seed: int, round: int) -> Adapter:
    """Return the adapter that a round starts from: the last round's, or with fresh pairs where the plan says so.

    A fresh pair is PEFT's: of a linear layer, A uniform within 1 / sqrt(in_features) and B zero; of an embedding, A
    zero and B normal. It is drawn by (seed, round).
    """
    if not plan.starts_fresh:
        return adapter
    draw = stream(seed, round=round, purpose="fresh pairs")
    return replace(adapter, layers={path: _fresh(layer, draw) for path, layer in adapter.layers.items()})


def for_rank(adapter: Adapter, rank: int, *, method: Method) -> Adapter:
    """Return the adapter for a client that trains at most `rank`, with the scaling that all have."""
    if all(layer.rank <= rank for layer in adapter.layers.values()):
        return adapter
    layers = dict(adapter.layers)
    for path, layer in layers.items():
        if layer.rank > rank:
            A, B = method.fit(layer.A, layer.B, rank)
            layers[path] = replace(layer, A=A.contiguous(), B=B.contiguous())
    return replace(adapter, layers=layers, config=fitted_config(adapter.config, layers))


def _fresh(layer: LoraLayer, draw: np.random.Generator) -> LoraLayer:
    zero_A, zero_B = torch.zeros_like(layer.A), torch.zeros_like(layer.B)
    if layer.is_embedding:
        return replace(layer, A=zero_A, B=torch.from_numpy(draw.standard_normal(layer.B.shape)).to(layer.B))
    bound = 1 / math.sqrt(layer.A.shape[1])
    return replace(layer, A=torch.from_numpy(draw.uniform(-bound, bound, layer.A.shape)).to(layer.A), B=zero_B)
