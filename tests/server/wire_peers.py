"""Peers of a real port, on the generated stubs alone: each answers what it is asked as a test wants."""

import dataclasses
import hashlib
import threading
from collections.abc import Callable

import grpc
from open_port import Conversation, OpenPort, named
from peers import description

from fedlora.adapters import Adapter, pack, unpack
from fedlora.adapters.differences import encode_file
from fedlora.client.site.transfer import download, upload
from fedlora.common.channels import open_channel
from fedlora.common.messages import (
    EvaluateReceipt,
    InitialiseReceipt,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.wire import Receipt, read_request, write_description, write_receipt
from fedlora.v1 import messages_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

Behaviour = Callable[["WirePeer", session_pb2.Request], Receipt | None]


class WirePeer:
    """A site's end of a real connection, in a thread.

    Attributes:
        received: the requests.
        told: the codes with which it was turned away.
        end: why its connection ended.
    """

    def __init__(self, port: OpenPort, name: str, behaviour: Behaviour, **described: object) -> None:
        self.name = name
        self.received: list[session_pb2.Request] = []
        self.told: list[str] = []
        self.end: grpc.StatusCode | None = None
        self._folder = port.folder.parent / "peers" / name
        self._folder.mkdir(parents=True)
        self._behaviour = behaviour
        self._description: SiteDescription = dataclasses.replace(
            description(name, num_held_out=10),
            **described,  # type: ignore[arg-type]
        )
        self._channel = open_channel(port.address, None)
        self.exchange = AdapterExchangeServiceStub(self._channel)
        self.conversation = Conversation(self._channel, named(name))
        self.conversation.hear("welcome")
        self.say_ready()
        self._thread = threading.Thread(target=self._converse, daemon=True)
        self._thread.start()

    def say_ready(self) -> None:
        self.conversation.say(readiness=session_pb2.Readiness(description=write_description(self._description)))

    def leave(self) -> None:
        self.conversation.__exit__()
        self._thread.join(30)
        self._channel.close()

    def asked(self, kind: str) -> int:
        """Return how many requests of a kind have come."""
        return sum(request.WhichOneof("content") == kind for request in self.received)

    def started_from(self, request: session_pb2.Request) -> Adapter:
        target = self._folder / "start"
        download(self.exchange, request.adapter.whole, target, metadata=named(self.name))
        return unpack(target.read_bytes())

    def _converse(self) -> None:
        try:
            while True:
                response = self.conversation.hear_any()
                if response.HasField("turned_away"):
                    self.told.append(response.turned_away.reason)
                elif response.HasField("request"):
                    self.received.append(response.request)
                    self._answer(response.request)
        except grpc.RpcError as error:
            self.end = error.code()

    def _answer(self, request: session_pb2.Request) -> None:
        receipt = self._behaviour(self, request)
        if receipt is None:
            return
        answer = session_pb2.Answer(request_id=request.request_id)
        write_receipt(receipt, answer)
        if isinstance(packed := getattr(receipt, "adapter", None), bytes):
            update = self._folder / "update"
            update.write_bytes(packed)
            if isinstance(receipt, TrainReceipt):
                encode_file(update, update, reference=None, precision="float32")
            content = update.read_bytes()
            blob = messages_pb2.Blob(sha256=hashlib.sha256(content).digest(), size_bytes=len(content))
            upload(self.exchange, request.ticket, update, blob, metadata=named(self.name))
            answer.adapter.encoded.CopyFrom(blob)
        self.conversation.say(answer=answer)


def honest_with(first: bytes) -> Behaviour:
    """Answer all that is asked at once: a first adapter by the upload of these bytes, a small step, a score."""

    def behave(peer: WirePeer, request: session_pb2.Request) -> Receipt | None:
        match asked := read_request(request):
            case TrainRequest():
                start = peer.started_from(request)
                layers = {path: dataclasses.replace(layer, B=layer.B + 0.01) for path, layer in start.layers.items()}
                return TrainReceipt(
                    asked.run, asked.round, asked.attempt, peer.name, "ok", num_examples=10, num_steps=1, loss=0.5,
                    adapter=pack(dataclasses.replace(start, layers=layers)),
                )  # fmt: skip
        if request.HasField("evaluate"):
            return EvaluateReceipt(request.evaluate.run, request.evaluate.round, 0, {peer.name: Score(10, 0.5, 0.75)})
        return InitialiseReceipt(first)

    return behave


def silent_at(*kinds: str, otherwise: Behaviour) -> Behaviour:
    """Take the requests of these kinds, and say nothing."""

    def behave(peer: WirePeer, request: session_pb2.Request) -> Receipt | None:
        return None if request.WhichOneof("content") in kinds else otherwise(peer, request)

    return behave
