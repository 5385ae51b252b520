"""Sites on the generated stubs, over a real port, that answer what a test wants; and a run whose server they have."""

import dataclasses
import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from open_port import DEADLINE_SECONDS, Conversation, OpenPort, blob_of, exchange_of, named, open_port
from peers import LORA, first_adapter

from fedlora.adapters import pack, unpack
from fedlora.adapters.differences import encode_file
from fedlora.aggregation import FedIT
from fedlora.client.site.transfer import upload
from fedlora.common.channels import open_channel
from fedlora.common.config import RunConfig
from fedlora.methods import Method
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import Event
from fedlora.server.record.round_report import RoundReport
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.v1 import exchange_pb2, session_pb2
from fedlora.v1 import messages_pb2 as pb

# Changes an answer before it is sent.
Lie = Callable[[session_pb2.Answer], None]


def described(**changes: Any) -> pb.SiteDescription:
    said = {"num_examples": 10, "num_validation": 4, "num_held_out": 4, "metric_name": "accuracy", "lora_rank": 2}
    return pb.SiteDescription(**{**said, "base_model_fingerprint": "sha256:0", "version": "0.1.0", **changes})


def nothing(_answer: session_pb2.Answer) -> None:
    pass


class StubSite:
    """One connection of a site: it trains by a step of its own, and tells of it what `lie` makes of the truth.

    Attributes:
        turned_away: the codes with which it was.
        refused: those of its updates that were refused.
    """

    def __init__(self, address: str, name: str, description: pb.SiteDescription, lie: Lie = nothing) -> None:
        self.name = name
        self.turned_away: list[str] = []
        self.refused: list[str] = []
        self._address = address
        self._lie = lie
        self._description = description
        self._folder = Path(tempfile.mkdtemp(prefix=name))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "StubSite":
        self._channel = open_channel(self._address, None)
        self._talk = Conversation(self._channel, named(self.name))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._talk.__exit__()
        self._thread.join(DEADLINE_SECONDS)
        self._channel.close()

    def _run(self) -> None:
        self._talk.say(readiness=session_pb2.Readiness(description=self._description))
        with exchange_of(self._address) as self._exchange:
            try:
                while True:
                    self._take(self._talk.hear_any())
            except (grpc.RpcError, StopIteration):
                return

    def _take(self, response: session_pb2.ConnectResponse) -> None:
        match response.WhichOneof("content"):
            case "request":
                answer = self._answer(response.request)
                self._lie(answer)
                self._talk.say(answer=answer)
            case "turned_away":
                self.turned_away.append(response.turned_away.reason)
            case "acknowledgement" if response.acknowledgement.refusal:
                self.refused.append(response.acknowledgement.refusal)

    def _answer(self, request: session_pb2.Request) -> session_pb2.Answer:
        answer = session_pb2.Answer(request_id=request.request_id)
        match request.WhichOneof("content"):
            case "initialise":
                answer.initialise.SetInParent()
                self._send(answer, request, pack(first_adapter()), reference=None)
            case "train":
                asked = request.train
                score = pb.Score(num_examples=4, loss=1.0, metric=0.5)
                answer.train.CopyFrom(
                    pb.TrainReceipt(
                        run=asked.run, round=asked.round, attempt=asked.attempt, client=self.name, status="ok",
                        num_examples=10, num_steps=1, loss=0.5, before=score, after=score, seconds={"training": 0.1},
                    )
                )  # fmt: skip
                start = self._fetched(request)
                layers = {
                    path: dataclasses.replace(layer, B=layer.B + len(self.name))
                    for path, layer in unpack(start).layers.items()
                }
                self._send(answer, request, pack(dataclasses.replace(unpack(start), layers=layers)), reference=start)
            case "evaluate":
                asked = request.evaluate
                groups = {self.name: pb.Score(num_examples=4, loss=1.0, metric=0.5)}
                answer.evaluate.CopyFrom(pb.EvaluateReceipt(run=asked.run, round=asked.round, groups=groups))
        return answer

    def _fetched(self, request: session_pb2.Request) -> bytes:
        read = exchange_pb2.ReadRequest(sha256=request.adapter.whole.sha256)
        return b"".join(part.data for part in self._exchange.Read(read, metadata=named(self.name)))

    def _send(
        self, answer: session_pb2.Answer, request: session_pb2.Request, packed: bytes, *, reference: bytes | None
    ) -> None:
        paths = [self._folder / name for name in ("packed", "reference", "encoded")]
        paths[0].write_bytes(packed)
        paths[1].write_bytes(reference or b"")
        encode_file(paths[0], paths[2], reference=None if reference is None else paths[1], precision="float32")
        blob = blob_of(paths[2].read_bytes())
        assert blob.sha256 == hashlib.sha256(paths[2].read_bytes()).digest()
        upload(self._exchange, request.ticket, paths[2], blob, metadata=named(self.name))
        answer.adapter.encoded.CopyFrom(blob)


@dataclasses.dataclass
class ServedRun:
    """A run in a thread, over the sites that connect to a port."""

    port: OpenPort
    config: RunConfig
    events: list[Event]
    thread: threading.Thread
    errors: list[BaseException]

    def reports(self) -> list[RoundReport]:
        """Return the rounds once the run is over."""
        self.thread.join(DEADLINE_SECONDS)
        assert not self.thread.is_alive(), self.events[-3:]
        if self.errors:
            raise self.errors[0]
        checkpoint = RunFolder(self.port.folder / "rounds-of-it").latest()
        assert checkpoint is not None
        return list(checkpoint.reports)


@contextmanager
def served_run(
    folder: Path,
    *,
    num_sites: int,
    method: Method | None = None,
    evaluation: Mapping[str, object] = {},
    **federation: object,
) -> Iterator[ServedRun]:
    """Yield a run of one round, unless it says otherwise, whose port is open."""
    settings = {"rounds": 1, "sites": num_sites, **federation}
    config = RunConfig.model_validate(
        {
            "federation": settings,
            "evaluation": evaluation,
            "data": {"labels": ["a", "b"]},
            "lora": LORA,
            "aggregation": {"method": "fedit"},
        }
    )
    with open_port(folder) as port:
        events: list[Event] = []
        errors: list[BaseException] = []
        run = FederatedRun(
            config, method or FedIT(), RunFolder(port.folder / "rounds-of-it"), num_sites=num_sites, command="test",
            listener=events.append,
        )  # fmt: skip

        def start() -> None:
            try:
                run.start(LastingSites(port.grid))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        yield ServedRun(port, config, events, thread, errors)
        port.grid.stop(is_finished=True)
        thread.join(DEADLINE_SECONDS)


def finished_run(
    folder: Path,
    lies: Mapping[str, Lie],
    *,
    descriptions: Mapping[str, pb.SiteDescription] = {},
    **settings: Any,
) -> tuple[list[RoundReport], dict[str, StubSite]]:
    """Return the rounds of a run over sites that tell the truth or not, and the sites."""
    with served_run(folder, num_sites=len(lies), **settings) as run, ExitStack() as stack:
        sites = {
            name: stack.enter_context(StubSite(run.port.address, name, descriptions.get(name, described()), lie))
            for name, lie in lies.items()
        }
        return run.reports(), sites
