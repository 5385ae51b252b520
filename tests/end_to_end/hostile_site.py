"""A site that keeps to nothing: enrolled as any other, with a client of its own on the generated stubs.

At each request of a kind it tries the next of its attacks on that kind; beside each training one of those that need no
request. When there are none left it answers as a site does that has nothing to say. `outcomes` holds what came of each.
"""

import hashlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from types import TracebackType

import grpc
from safetensors.torch import load
from torch import Tensor

from fedlora.adapters.packed import metadata_of
from fedlora.adapters.tensor_writer import tensor_bytes
from fedlora.common.channels import CHUNK_BYTES, Credentials, details_of, open_channel
from fedlora.common.messages import SiteDescription
from fedlora.common.wire import PROTOCOL, write_description
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub
from fedlora.v1.session_pb2_grpc import SessionServiceStub

DEADLINE_SECONDS = 60.0
_PAUSE_SECONDS, _LOOK_SECONDS = 0.2, 0.02


@dataclass(frozen=True)
class Attack:
    """Something that no honest site does.

    Attributes:
        kind: at what it happens: "first" of all, in place of saying who it is; before it says who it is, "join"; at a
            request to "initialise", "train" or "evaluate"; or "beside" a training.
        act: does it; of one that gives no answer itself what came of it, else nothing.
    """

    name: str
    kind: str
    act: Callable[["HostileSite", session_pb2.Request], str]


class HostileSite:
    """One site's connection, for as long as the context lasts, and over again where the server ends it.

    Attributes:
        outcomes: by attack, what came of it, in a few words each.
        known: a packed adapter of the run's own names and shapes, as any site can make one.
        describe: gives what an honest site in this one's place would say of itself, as soon as it is known.
        kept: sockets that stay open for as long as the site is there.
        welcomed: set once a connection has been taken.
    """

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        attacks: Iterable[Attack],
        *,
        known: bytes,
        describe: Callable[[], SiteDescription],
    ) -> None:
        self.address = address
        self.credentials = credentials
        self.known = known
        self.outcomes: dict[str, list[str]] = {}
        self.kept: list[socket.socket] = []
        self.welcomed = threading.Event()
        self.describe = describe
        self._to_do: dict[str, deque[Attack]] = {}
        for attack in attacks:
            self._to_do.setdefault(attack.kind, deque()).append(attack)
        self._answered: dict[str, str] = {}
        self._outgoing: queue.SimpleQueue[session_pb2.ConnectRequest | None] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._stay, name="hostile", daemon=True)

    def __enter__(self) -> "HostileSite":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        if self._call is not None:
            self._call.cancel()
        self._thread.join(DEADLINE_SECONDS)
        for open_socket in self.kept:
            open_socket.close()

    @property
    def untried(self) -> list[Attack]:
        """The attacks for which there was no occasion."""
        return [attack for attacks in self._to_do.values() for attack in attacks]

    # -- what attacks are made of

    def say(self, **content: object) -> None:
        self._outgoing.put(session_pb2.ConnectRequest(**content))  # type: ignore[arg-type]

    def is_all_sent(self) -> bool:
        """Return whether all that was said is on its way; until then, or the connection's end, nothing is read."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._outgoing.empty() and time.monotonic() < deadline:
            if self._call is None or not self._call.is_active():
                break
            time.sleep(_LOOK_SECONDS)
        return self._outgoing.empty()

    def say_ready(self, **changes: object) -> None:
        """Count as a site that has rehearsed, with changes of what an honest one would say."""
        described = write_description(self.describe())
        for name, value in changes.items():
            setattr(described, name, value)
        self.say(readiness=session_pb2.Readiness(description=described))

    def start_of(self, request: session_pb2.Request) -> tuple[dict[str, Tensor], str]:
        """Return the tensors that a training starts from, and their configuration as JSON."""
        with self.exchange() as exchange:
            read = exchange.stub.Read(exchange_pb2.ReadRequest(sha256=request.adapter.whole.sha256))
            packed = b"".join(response.data for response in read)
        return load(packed), metadata_of(packed)["adapter_config"]

    def exchange(self) -> "Exchange":
        """Return a connection of its own to the exchange, as a context."""
        return Exchange(self.address, self.credentials)

    def upload(self, request: session_pb2.Request, content: bytes) -> messages_pb2.Blob:
        """Bring bytes to the server as the update that a request asks for."""
        blob = messages_pb2.Blob(sha256=hashlib.sha256(content).digest(), size_bytes=len(content))
        with self.exchange() as exchange:
            exchange.stub.Write(chunks(request.ticket, blob, content))
        return blob

    def answer(
        self, request: session_pb2.Request, content: bytes | None = None, receipt: object = None, **changes: object
    ) -> None:
        """Answer a training with an uploaded update, and a receipt with changes of what an honest one would say."""
        answer = session_pb2.Answer(request_id=request.request_id)
        if content is not None:
            answer.adapter.encoded.CopyFrom(self.upload(request, content))
        if request.HasField("initialise"):
            answer.initialise.SetInParent()
        elif receipt is not None:
            answer.evaluate.CopyFrom(receipt)  # type: ignore[arg-type]
        else:
            asked, described = request.train, self.describe()
            honest = messages_pb2.TrainReceipt(
                run=asked.run, round=asked.round, attempt=asked.attempt, client=described.client, status="ok",
                num_examples=described.num_examples, num_steps=1, loss=0.5,
            )  # fmt: skip
            for name, value in changes.items():
                if isinstance(value, Mapping):
                    getattr(honest, name).update(value)
                else:
                    setattr(honest, name, value)
            answer.train.CopyFrom(honest)
        self.say(answer=answer)

    def fail(self, request: session_pb2.Request, code: str = "internal", text: str = "") -> None:
        """Answer a request with a failure's code."""
        failure = messages_pb2.Failure(code=code, text=text)
        self.say(answer=session_pb2.Answer(request_id=request.request_id, failure=failure))

    def scores(self, request: session_pb2.Request, **changes: object) -> messages_pb2.EvaluateReceipt:
        """Return a score as an honest site gives it, with changes."""
        asked = request.evaluate
        score = messages_pb2.Score(num_examples=4, loss=1.0, metric=0.25)
        for name, value in changes.items():
            setattr(score, name, value)
        return messages_pb2.EvaluateReceipt(
            run=asked.run, round=asked.round, shard=asked.shard, groups={self.describe().client: score}
        )

    # -- within

    def _stay(self) -> None:
        while not self._is_over.is_set():
            with suppress(grpc.RpcError), open_channel(self.address, self.credentials) as channel:
                self._connection(channel)
            self._is_over.wait(_PAUSE_SECONDS)

    def _connection(self, channel: grpc.Channel) -> None:
        self._outgoing = queue.SimpleQueue()
        self.say(hello=session_pb2.Hello(protocol=PROTOCOL, version=version("fedlora")))
        call = SessionServiceStub(channel).Connect(iter(self._outgoing.get, None))
        self._call = call
        try:
            for response in call:
                match response.WhichOneof("content"):
                    case "welcome":
                        self.welcomed.set()
                        self._join()
                    case "request":
                        self._serve(response.request)
                    case "acknowledgement":
                        self._heard(response.acknowledgement.request_id, response.acknowledgement.refusal or "accepted")
                    case "cancellation":
                        self._heard(response.cancellation.request_id, "cancelled")
                    case "turned_away":
                        self._note("turned away", response.turned_away.reason)
                        return
                    case "drain" if response.drain.is_finished:
                        self._is_over.set()
                        return
        except grpc.RpcError as error:
            self._note("connections ended", details_of(error))
        finally:
            self._outgoing.put(None)
            call.cancel()

    def _join(self) -> None:
        first = self._next("first")
        if first is not None:
            self._note(first.name, first.act(self, session_pb2.Request()))
            return
        while (attack := self._next("join")) is not None:
            self._note(attack.name, attack.act(self, session_pb2.Request()))
        self.say_ready()

    def _serve(self, request: session_pb2.Request) -> None:
        kind = request.WhichOneof("content") or ""
        if request.request_id in self._answered:  # It was asked for again after the connection had ended.
            self.fail(request)
            return
        if kind == "train" and (beside := self._next("beside")) is not None:
            self._note(beside.name, beside.act(self, request))
        attack = self._next(kind)
        if attack is None:
            self._give_nothing(request)
            return
        self._answered[request.request_id] = attack.name
        try:
            self._note(attack.name, attack.act(self, request))
        except grpc.RpcError as error:
            self._note(attack.name, f"{error.code().name}: {details_of(error)}")
            self.fail(request)

    def _give_nothing(self, request: session_pb2.Request) -> None:
        if request.HasField("evaluate"):
            self.answer(request, receipt=self.scores(request))
        else:
            self.fail(request)

    def _next(self, kind: str) -> Attack | None:
        waiting = self._to_do.get(kind)
        return waiting.popleft() if waiting else None

    def _heard(self, request_id: str, what: str) -> None:
        if request_id in self._answered:
            self._note(self._answered[request_id], what)

    def _note(self, name: str, outcome: str) -> None:
        noted = self.outcomes.setdefault(name, [])
        if outcome:
            noted.append(outcome)


class Exchange:
    """A connection to the exchange service alone."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self._channel = open_channel(address, credentials)
        self.stub = AdapterExchangeServiceStub(self._channel)

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def chunks(
    ticket: bytes, blob: messages_pb2.Blob, content: bytes, *, offset: int = 0
) -> Iterable[exchange_pb2.WriteRequest]:
    """Yield an upload's messages, from an offset on."""
    yield exchange_pb2.WriteRequest(
        ticket=ticket, blob=blob, offset=offset, data=content[offset : offset + CHUNK_BYTES]
    )
    for begin in range(offset + CHUNK_BYTES, len(content), CHUNK_BYTES):
        yield exchange_pb2.WriteRequest(data=content[begin : begin + CHUNK_BYTES])


def encoded(tensors: Mapping[str, Tensor], config: str) -> bytes:
    """Return an update as it goes on the wire in float32: each tensor whole."""
    metadata = {"adapter_config": config, "precision": "float32", "reference": ""}
    return tensor_bytes({f"whole.{name}": tensor.contiguous() for name, tensor in tensors.items()}, metadata)


def refusal_of(call: Callable[[], object]) -> str:
    """Return status and code with which a call is refused, or that it was not."""
    try:
        call()
    except grpc.RpcError as error:
        return f"{error.code().name}: {details_of(error)}"
    return "not refused"
