"""A Site without a network: a line that keeps what it says, an exchange in memory, and a worker over seat_apps."""

import hashlib
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import seat_apps
import torch

from fedlora.adapters import Adapter, LoraLayer, pack
from fedlora.client.site.events import Listener, ignore
from fedlora.client.site.line import Line
from fedlora.client.site.outbox import Outbox
from fedlora.client.site.participation import Participation
from fedlora.client.site.site_file import SiteConfig
from fedlora.client.worker.seat import WorkerSeat
from fedlora.common.config import RunConfig
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2

DEADLINE_SECONDS = 120.0  # The first worker waits for torch and PEFT, on a machine that may have other work.
RUN = RunConfig()
CHUNK_BYTES = 256


class BrokenOff(grpc.RpcError):
    """What grpc raises when a connection breaks."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the connection broke"


class MemoryExchange:
    """The exchange's stub over files in memory; it breaks off after as many bytes as a test says, once.

    Attributes:
        files: by sha256, what can be read.
        read: the sha256 of what was read, in order.
        written: by sha256, what has come so far.
        offsets: at which each upload began.
    """

    def __init__(self) -> None:
        self.files: dict[bytes, bytes] = {}
        self.read: list[bytes] = []
        self.written: dict[bytes, bytes] = {}
        self.offsets: list[int] = []
        self.breaks_after: int | None = None

    def put(self, content: bytes) -> messages_pb2.Blob:
        digest = hashlib.sha256(content).digest()
        self.files[digest] = content
        return messages_pb2.Blob(sha256=digest, size_bytes=len(content))

    def Read(self, request: exchange_pb2.ReadRequest, *, metadata: object) -> Iterator[exchange_pb2.ReadResponse]:
        assert metadata == ()
        self.read.append(request.sha256)
        yield exchange_pb2.ReadResponse(data=self.files[request.sha256][request.offset :])

    def Write(self, requests: Iterator[exchange_pb2.WriteRequest], *, metadata: object) -> exchange_pb2.WriteResponse:
        assert metadata == ()
        first = next(requests)
        assert first.ticket == b"ticket"
        self.offsets.append(first.offset)
        digest, have = first.blob.sha256, self.written.get(first.blob.sha256, b"")
        assert first.offset == len(have)
        for data in (first.data, *(request.data for request in requests)):
            have += data
            if self.breaks_after is not None and len(have) >= self.breaks_after:
                self.written[digest], self.breaks_after = have[: self.breaks_after], None
                raise BrokenOff
        self.written[digest] = have
        return exchange_pb2.WriteResponse(committed_bytes=len(have))

    def QueryWriteStatus(
        self, request: exchange_pb2.QueryWriteStatusRequest, *, metadata: object
    ) -> exchange_pb2.QueryWriteStatusResponse:
        assert (request.ticket, metadata) == (b"ticket", ())
        return exchange_pb2.QueryWriteStatusResponse(committed_bytes=len(self.written.get(request.blob.sha256, b"")))


class Bench:
    """A site on the bench, and the server's end of its line."""

    def __init__(self, folder: Path, *, run: RunConfig = RUN, listener: Listener = ignore, **sections: object) -> None:
        self.app, self.state = folder / "app", folder / "north.site"
        self.app.mkdir()
        self.state.mkdir()
        limits = sections.pop("limits", {})
        assert isinstance(limits, dict)
        # The worker of seat_apps holds a few examples.
        config = {
            "site": {"name": "north"},
            "data": {"path": "never read"},
            "limits": {"least_examples": 1, **limits},
            **sections,
        }
        self.is_paused = False
        self.exchange = MemoryExchange()
        self.said: queue.SimpleQueue[session_pb2.ConnectRequest] = queue.SimpleQueue()
        self.site = Participation(
            run,
            SiteConfig.model_validate(config),
            seat=WorkerSeat(seat_apps.make_app, {seat_apps.FOLDER: str(self.app)}),
            outbox=Outbox(self.state),
            is_paused=lambda: self.is_paused,
            listener=listener,
        )

    def connect(self) -> None:
        """Give the site a new connection; what it says on the former is lost."""
        self.said = queue.SimpleQueue()
        exchange: Any = self.exchange
        self.site.connected(Line(self.said.put, exchange, ()))

    def order(self, what: str) -> None:
        (self.app / "order").write_text(what)

    def ask(self, request_id: str, content: object, packed: bytes = b"", **offered: messages_pb2.Blob) -> None:
        """Send the site a request, with this adapter on offer."""
        message = session_pb2.Request(request_id=request_id, ticket=b"ticket", precision="float32")
        if packed:
            message.adapter.CopyFrom(messages_pb2.OfferedAdapter(whole=self.exchange.put(packed), **offered))
        names: dict[type, str] = {
            messages_pb2.TrainRequest: "train",
            messages_pb2.EvaluateRequest: "evaluate",
            messages_pb2.InitialiseRequest: "initialise",
        }
        getattr(message, names[type(content)]).CopyFrom(content)
        self.site.take(session_pb2.ConnectResponse(request=message))

    def cancel(self, request_id: str) -> None:
        self.site.take(session_pb2.ConnectResponse(cancellation=session_pb2.Cancellation(request_id=request_id)))

    def acknowledge(self, request_id: str, refusal: str = "") -> None:
        content = session_pb2.Acknowledgement(request_id=request_id, refusal=refusal)
        self.site.take(session_pb2.ConnectResponse(acknowledgement=content))

    def heard(self) -> session_pb2.ConnectRequest:
        """Return what the site says next."""
        return self.said.get(timeout=DEADLINE_SECONDS)

    def readiness(self) -> session_pb2.Readiness:
        said = self.heard()
        assert said.WhichOneof("content") == "readiness", said
        return said.readiness

    def answer(self) -> session_pb2.Answer:
        said = self.heard()
        assert said.WhichOneof("content") == "answer", said
        return said.answer

    def is_silent(self) -> bool:
        return self.said.empty()

    def num(self, what: str) -> int:
        """Return how many `trainings`, `evaluations` or `rehearsals` the worker has begun."""
        path = self.app / what
        return len(path.read_text().splitlines()) if path.exists() else 0

    def results(self) -> list[str]:
        """Return the files that wait for the server."""
        outbox = self.state / "outbox"
        return sorted(str(path.relative_to(outbox)) for path in outbox.rglob("*") if path.is_file())


StartBench = Callable[..., Bench]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def train(round: int = 1, *, attempt: int = 0) -> messages_pb2.TrainRequest:
    return messages_pb2.TrainRequest(run="run", round=round, attempt=attempt, num_rounds=10, trains=["A", "B"])


def evaluate(round: int = 1) -> messages_pb2.EvaluateRequest:
    return messages_pb2.EvaluateRequest(run="run", round=round, num_shards=1)


def adapter(seed: int = 0) -> bytes:
    draw = torch.Generator().manual_seed(seed)
    layer = LoraLayer(torch.randn(2, 48, generator=draw), torch.randn(40, 2, generator=draw), 2.0)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return pack(Adapter({"block.q_proj": layer}, {}, config))
