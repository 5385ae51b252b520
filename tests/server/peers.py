"""Peers of a GrpcGrid without a network: they answer requests as a test wants."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.common.messages import (
    EvaluateReceipt,
    Failure,
    InitialiseReceipt,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.schema import to_proto
from fedlora.common.wire import Receipt, read_request
from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.v1 import session_pb2

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj"]}
"""Of a run whose first adapter is `first_adapter`."""

Behaviour = Callable[["Peer", session_pb2.Request], Receipt | None]


def small_adapter(seed: int = 0) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    layer = LoraLayer(torch.randn(2, 6, generator=draw), torch.randn(4, 2, generator=draw), 2.0)
    return Adapter({"block.q_proj": layer}, {}, CONFIG)


def first_adapter() -> Adapter:
    """Return what an honest peer makes of the run file: A is drawn, and B is zero."""
    start = small_adapter()
    layers = {path: dataclasses.replace(layer, B=torch.zeros_like(layer.B)) for path, layer in start.layers.items()}
    return dataclasses.replace(start, layers=layers)


def description(name: str, *, num_held_out: int = 0) -> SiteDescription:
    return SiteDescription(
        client=name,
        num_examples=10,
        num_validation=2,
        num_held_out=num_held_out,
        metric_name="accuracy",
        labels=("a", "b"),
        base_model="base",
        base_model_fingerprint="sha256:0",
        data_fingerprint=name,
        version="0.1.0",
        lora_rank=2,
        has_own_held_out=True,
    )


class Peer:
    """A site's end of a connection: answers each request with what its behaviour returns, or not at all."""

    def __init__(self, grid: GrpcGrid, exchange: ExchangeStore, name: str, behaviour: Behaviour) -> None:
        self.grid = grid
        self.exchange = exchange
        self.name = name
        self.behaviour = behaviour
        self.received: list[session_pb2.Request] = []
        self.cancelled: list[str] = []
        self.acknowledged: list[str] = []
        self.connect()

    def connect(self) -> None:
        self.grid.connect(self.name, self.send)
        self.grid.ready(self.name, description(self.name))

    def disconnect(self) -> None:
        self.grid.disconnect(self.name, self.send)

    def send(self, response: session_pb2.ConnectResponse | str) -> None:
        if isinstance(response, str):
            return
        match response.WhichOneof("content"):
            case "request":
                self.received.append(response.request)
                threading.Thread(target=self._answer, args=(response.request,), daemon=True).start()
            case "cancellation":
                self.cancelled.append(response.cancellation.request_id)
            case "acknowledgement":
                self.acknowledged.append(response.acknowledgement.refusal)

    def _answer(self, request: session_pb2.Request) -> None:
        receipt = self.behaviour(self, request)
        if receipt is not None:
            self.grid.answer(
                self.name, request.request_id, to_proto(receipt, with_local=True), getattr(receipt, "adapter", b"")
            )

    def started_from(self, request: session_pb2.Request) -> Adapter:
        path = self.exchange.find(request.adapter.whole.sha256.hex())
        assert path is not None
        return unpack(path.read_bytes())


def honest(peer: Peer, request: session_pb2.Request) -> Receipt | None:
    """Train for a fixed step that depends on the name, at once."""
    match request.WhichOneof("content"):
        case "initialise":
            return InitialiseReceipt(pack(first_adapter()))
        case "evaluate":
            return EvaluateReceipt(
                request.evaluate.run, request.evaluate.round, 0, {peer.name: Score(2, 0.5, 0.75)}, {}
            )
    asked = read_request(request)
    assert isinstance(asked, TrainRequest)
    start = peer.started_from(request)
    step = 0.01 * (1 + sum(peer.name.encode()) % 7)
    layers = {path: dataclasses.replace(layer, B=layer.B + step) for path, layer in start.layers.items()}
    return TrainReceipt(
        asked.run, asked.round, asked.attempt, peer.name, "ok", num_examples=10, num_steps=1, loss=0.5,
        adapter=pack(dataclasses.replace(start, layers=layers)),
    )  # fmt: skip


def after(gate: threading.Event, behaviour: Behaviour = honest) -> Behaviour:
    """Train only once `gate` is open; everything else at once."""

    def behave(peer: Peer, request: session_pb2.Request) -> Receipt | None:
        if request.HasField("train"):
            gate.wait(30)
        return behaviour(peer, request)

    return behave


def failing(code: str, num_times: int = 10**9) -> Behaviour:
    """Answer the first trainings with a failure."""
    times: list[None] = []

    def behave(peer: Peer, request: session_pb2.Request) -> Receipt | None:
        if request.HasField("train") and len(times) < num_times:
            times.append(None)
            return Failure(code)
        return honest(peer, request)

    return behave


def silent(_peer: Peer, _request: session_pb2.Request) -> Receipt | None:
    return None


def make_grid(folder: Path, listener: Callable[[object], None]) -> tuple[GrpcGrid, ExchangeStore]:
    from fedlora.server.identity.tickets import TicketOffice

    exchange = ExchangeStore(folder / "exchange", precision="float32")
    grid = GrpcGrid(exchange, TicketOffice(exchange.ticket_key_file), max_start_bytes=10**6, listener=listener)
    return grid, exchange
