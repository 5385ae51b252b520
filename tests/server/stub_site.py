"""A site on the generated stubs, over a real port, in a thread: it answers what a test wants, honest or hostile."""

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import torch

sys.path.append(str(Path(__file__).parent))

from open_port import DEADLINE_SECONDS, Conversation, blob_of, named
from peers import description, first_adapter

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.adapters.differences import encode_file
from fedlora.client.site.transfer import download, upload
from fedlora.common.channels import open_channel
from fedlora.common.wire import write_description
from fedlora.v1 import messages_pb2 as pb
from fedlora.v1 import session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

SCORE = pb.Score(num_examples=4, loss=1.0, metric=0.5)


def _described(name: str, changes: Mapping[str, Any]) -> pb.SiteDescription:
    said = write_description(replace(description(name), num_validation=4, num_held_out=4))
    for field_name in changes:
        said.ClearField(field_name)  # type: ignore[arg-type]
    said.MergeFrom(pb.SiteDescription(**changes))
    return said


@dataclass(frozen=True)
class Reply:
    """What a site sends for a request: its answer, and before that the file of an adapter, as it travels."""

    answer: session_pb2.Answer
    adapter: bytes | None = None


Behaviour = Callable[["StubSite", session_pb2.Request], Reply | None]
"""What a site replies to a request; None for nothing at all."""


@dataclass(eq=False)
class StubSite:
    """A site from its connection to the server's end, or until it leaves.

    Attributes:
        says: what it says of itself that an honest site would not, by field.
        received: the requests so far.
        heard: the acknowledgements so far.
        turned_away: the codes with which it was.
        ended: why the server ended the session, once it has.
    """

    name: str
    folder: Path
    behave: "Behaviour | None" = None
    says: Mapping[str, Any] = field(default_factory=dict)
    received: list[session_pb2.Request] = field(default_factory=list)
    heard: list[session_pb2.Acknowledgement] = field(default_factory=list)
    turned_away: list[str] = field(default_factory=list)
    ended: tuple[grpc.StatusCode, str] | None = None

    def connect(self, address: str, *, broken: Callable[[], None] = lambda: None) -> "StubSite":
        """Connect in a thread, where `broken` is called when the behaviour raises."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._broken = broken
        self._channel = open_channel(address, None)
        self._exchange = AdapterExchangeServiceStub(self._channel)
        self._conversation = Conversation(self._channel, named(self.name))
        self._thread = threading.Thread(target=self._converse, daemon=True)
        self._thread.start()
        return self

    def __enter__(self) -> "StubSite":
        return self

    def __exit__(self, *_: object) -> None:
        self._conversation.__exit__()
        self.join()

    def join(self) -> None:
        """Wait for its end, whoever ends it."""
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), self.name

    @property
    def refused(self) -> list[str]:
        """Why its updates were."""
        return [each.refusal for each in self.heard if each.refusal]

    def asked(self, kind: str) -> int:
        """Return how many requests of a kind have come."""
        return sum(request.WhichOneof("content") == kind for request in self.received)

    def say_ready(self) -> None:
        said = _described(self.name, self.says)
        self._conversation.say(readiness=session_pb2.Readiness(description=said))

    def start_of(self, request: session_pb2.Request) -> Path:
        """Return the file of the adapter that a training starts from."""
        start = self.folder / request.adapter.whole.sha256.hex()
        if not start.exists():
            download(self._exchange, request.adapter.whole, start, metadata=named(self.name))
        return start

    def _converse(self) -> None:
        with self._channel, self._conversation:
            try:
                for response in self._conversation:
                    match response.WhichOneof("content"):
                        case "welcome":
                            self.say_ready()
                        case "request":
                            self.received.append(response.request)
                            self._answer(response.request)
                        case "acknowledgement":
                            self.heard.append(response.acknowledgement)
                        case "turned_away":
                            self.turned_away.append(response.turned_away.reason)
                        case "drain":
                            return
            except grpc.RpcError as error:
                self.ended = error.code(), str(error.details())
            except BaseException:
                self._broken()
                raise

    def _answer(self, request: session_pb2.Request) -> None:
        reply = (self.behave or honest)(self, request)
        if reply is None:
            return
        if reply.adapter is not None:
            path, blob = self.folder / "sent", blob_of(reply.adapter)
            path.write_bytes(reply.adapter)
            upload(self._exchange, request.ticket, path, blob, metadata=named(self.name))
            reply.answer.adapter.encoded.CopyFrom(blob)
        self._conversation.say(answer=reply.answer)


# -- what it answers


def honest(site: StubSite, request: session_pb2.Request) -> Reply:
    """Answer all that is asked at once: a first adapter, a step that depends on the name, a score under its name."""
    answer = session_pb2.Answer(request_id=request.request_id)
    match request.WhichOneof("content"):
        case "initialise":
            answer.initialise.SetInParent()
            return Reply(answer, _as_it_travels(site, first_adapter(), reference=None))
        case "evaluate":
            asked = request.evaluate
            answer.evaluate.CopyFrom(pb.EvaluateReceipt(run=asked.run, round=asked.round, groups={site.name: SCORE}))
            return Reply(answer)
    return moved(site, request, step=0.01 * (1 + sum(site.name.encode()) % 7))


def moved(site: StubSite, request: session_pb2.Request, *, step: float) -> Reply:
    """Return a training whose B has moved by a step, with an honest receipt."""
    return _trained(site, request, lambda layer: replace(layer, B=layer.B + step))


def zeros(site: StubSite, request: session_pb2.Request) -> Reply:
    """Return a training that ends in nothing but zeros."""
    return _trained(site, request, lambda layer: replace(layer, A=torch.zeros_like(layer.A), B=layer.B * 0))


def _trained(site: StubSite, request: session_pb2.Request, change: Callable[[LoraLayer], LoraLayer]) -> Reply:
    asked, start = request.train, site.start_of(request)
    answer = session_pb2.Answer(request_id=request.request_id)
    answer.train.CopyFrom(
        pb.TrainReceipt(
            run=asked.run, round=asked.round, attempt=asked.attempt, client=site.name, status="ok",
            num_examples=10, num_steps=1, loss=0.5, before=SCORE, after=SCORE, seconds={"training": 0.1},
        )
    )  # fmt: skip
    adapter = unpack(start.read_bytes())
    update = replace(adapter, layers={path: change(layer) for path, layer in adapter.layers.items()})
    return Reply(answer, _as_it_travels(site, update, reference=start, precision=request.precision))


def _as_it_travels(site: StubSite, adapter: Adapter, *, reference: Path | None, precision: Any = "float32") -> bytes:
    whole, encoded = site.folder / "whole", site.folder / "encoded"
    whole.write_bytes(pack(adapter))
    encode_file(whole, encoded, reference=reference, precision=precision)
    return encoded.read_bytes()


def starting_from(first: bytes) -> Behaviour:
    """Answer the request for a first adapter with these bytes, and be honest besides."""

    def behave(site: StubSite, request: session_pb2.Request) -> Reply:
        if not request.HasField("initialise"):
            return honest(site, request)
        answer = session_pb2.Answer(request_id=request.request_id)
        answer.initialise.SetInParent()
        return Reply(answer, first)

    return behave


def lying(change: Callable[[session_pb2.Answer], None]) -> Behaviour:
    """Be honest, but for what is changed in each answer."""

    def behave(site: StubSite, request: session_pb2.Request) -> Reply:
        reply = honest(site, request)
        change(reply.answer)
        return reply

    return behave


def silent_at(*kinds: str, otherwise: Behaviour = honest) -> Behaviour:
    """Take the requests of these kinds, and say nothing."""

    def behave(site: StubSite, request: session_pb2.Request) -> Reply | None:
        return None if request.WhichOneof("content") in kinds else otherwise(site, request)

    return behave
