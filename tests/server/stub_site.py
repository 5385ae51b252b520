"""Sites on the generated stubs, on a real port: they say what a test wants, hostile or honest, and note what they hear.

And a whole server around them in this process, with everything that `fedlora server start` has but the terminal.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import torch
from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from open_port import Conversation, blob_of, named
from peers import description

from fedlora.adapters import Adapter, LoraLayer, pack, unpack
from fedlora.adapters.differences import encode_file
from fedlora.client.site.transfer import Metadata, download, upload
from fedlora.common.channels import Credentials, open_channel
from fedlora.common.config import RunConfig
from fedlora.common.wire import write_description
from fedlora.server.deployment import Door, serve
from fedlora.server.record.events import Event, Listener
from fedlora.server.whole_run import Run, whole_run
from fedlora.v1 import messages_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def first_adapter() -> Adapter:
    layer = LoraLayer(torch.linspace(-1, 1, 12).reshape(2, 6), torch.zeros(4, 2), 2.0)
    return Adapter({"block.q_proj": layer}, {}, CONFIG)


def run_config(num_sites: int, **sections: dict[str, object]) -> RunConfig:
    """Return a run of sites that hold no data; its keywords are sections to change."""
    base: dict[str, dict[str, object]] = {
        "run": {"name": "digits"},
        "data": {"labels": ["a", "b"]},
        "lora": {"rank": 2, "alpha": 4, "target_modules": ["q_proj"]},
        "aggregation": {"method": "fedit"},
        "exchange": {"precision": "float32"},
        "federation": {"rounds": 1, "sites": num_sites, "quorum": 0.5},
    }
    names = {*base, *sections}
    return RunConfig.model_validate({name: {**base.get(name, {}), **sections.get(name, {})} for name in names})


@dataclass(frozen=True)
class Sent:
    """What a site sends for a training: the bytes it uploads, None for none, and its receipt."""

    update: bytes | None
    receipt: messages_pb2.TrainReceipt


Behaviour = Callable[["StubSite", session_pb2.Request, Path], Sent]
"""What a site sends, given the request and the file of the adapter that it starts from."""


def moved(site: "StubSite", request: session_pb2.Request, start: Path, *, step: float) -> Sent:
    """Return an update whose B has moved by a step, with an honest receipt."""
    adapter = unpack(start.read_bytes())
    layers = {path: replace(layer, B=layer.B + step) for path, layer in adapter.layers.items()}
    return sent(site, request, start, replace(adapter, layers=layers))


def honest(site: "StubSite", request: session_pb2.Request, start: Path) -> Sent:
    return moved(site, request, start, step=0.01 * (1 + sum(site.name.encode()) % 7))


def zero(site: "StubSite", request: session_pb2.Request, start: Path) -> Sent:
    adapter = unpack(start.read_bytes())
    layers = {
        path: replace(layer, A=torch.zeros_like(layer.A), B=torch.zeros_like(layer.B))
        for path, layer in adapter.layers.items()
    }
    return sent(site, request, start, replace(adapter, layers=layers))


def sent(site: "StubSite", request: session_pb2.Request, start: Path, update: Adapter) -> Sent:
    whole, encoded = site.folder / "update", site.folder / "encoded"
    whole.write_bytes(pack(update))
    encode_file(whole, encoded, reference=start, precision=request.precision)  # type: ignore[arg-type]
    asked = request.train
    receipt = messages_pb2.TrainReceipt(
        run=asked.run, round=asked.round, attempt=asked.attempt, client=site.name, status="ok",
        num_examples=10, num_steps=1, loss=0.5,
    )  # fmt: skip
    return Sent(encoded.read_bytes(), receipt)


@dataclass(eq=False)
class StubSite:
    """A site in a thread of its own, from its first connection to the server's end.

    Attributes:
        heard: the acknowledgements so far.
        ended: why the server ended the session, once it has.
    """

    name: str
    folder: Path
    behave: Behaviour = honest
    credentials: Credentials | None = None
    heard: list[session_pb2.Acknowledgement] = field(default_factory=list)
    ended: tuple[grpc.StatusCode, str] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def metadata(self) -> Metadata:
        return named(self.name)

    def start(self, address: str) -> threading.Thread:
        thread = threading.Thread(target=self.run, args=(address,), daemon=True)
        thread.start()
        return thread

    def run(self, address: str) -> None:
        with open_channel(address, self.credentials) as channel, Conversation(channel, self.metadata) as conversation:
            exchange = AdapterExchangeServiceStub(channel)
            try:
                for response in conversation:
                    match response.WhichOneof("content"):
                        case "welcome":
                            told = write_description(description(self.name))
                            conversation.say(readiness=session_pb2.Readiness(description=told))
                        case "request":
                            self._answer(conversation, exchange, response.request)
                        case "acknowledgement":
                            self.heard.append(response.acknowledgement)
                        case "drain":
                            return
            except grpc.RpcError as error:
                self.ended = error.code(), str(error.details())
            except BaseException:
                # A site that a test has made wrong would keep the server waiting for ever.
                os.kill(os.getpid(), signal.SIGTERM)
                raise

    def _answer(
        self, conversation: Conversation, exchange: AdapterExchangeServiceStub, request: session_pb2.Request
    ) -> None:
        answer = session_pb2.Answer(request_id=request.request_id)
        update: bytes | None
        match request.WhichOneof("content"):
            case "initialise":
                start = self.folder / "first"
                start.write_bytes(pack(first_adapter()))
                encoded = self.folder / "encoded"
                encode_file(start, encoded, reference=None, precision="float32")
                update = encoded.read_bytes()
                answer.initialise.SetInParent()
            case "evaluate":
                asked = request.evaluate
                answer.evaluate.CopyFrom(messages_pb2.EvaluateReceipt(run=asked.run, round=asked.round))
                answer.evaluate.groups["held out"].CopyFrom(messages_pb2.Score(num_examples=20, loss=0.5, metric=0.75))
                update = None
            case _:
                start = self.folder / request.adapter.whole.sha256.hex()
                if not start.exists():
                    download(exchange, request.adapter.whole, start, metadata=self.metadata)
                made = self.behave(self, request, start)
                update = made.update
                answer.train.CopyFrom(made.receipt)
        if update is not None:
            path = self.folder / "sent"
            path.write_bytes(update)
            answer.adapter.encoded.CopyFrom(blob_of(update))
            upload(exchange, request.ticket, path, blob_of(update), metadata=self.metadata)
        conversation.say(answer=answer)


@contextmanager
def _unchanged_identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def served(
    config: RunConfig,
    folder: Path,
    sites: Sequence[StubSite],
    *,
    listener: Listener = lambda _event: None,
    check: Callable[[Path], str] = lambda _folder: "",
    opened: Callable[[str], None] = lambda _address: None,
) -> list[Event]:
    """Serve a run to its end over these sites, and return what has happened.

    Args:
        opened: called with the address before the sites connect, in the thread of the server.
    """
    events: list[Event] = []
    threads: list[threading.Thread] = []

    def listen(event: Event) -> None:
        events.append(event)
        listener(event)

    def begin(port: int) -> None:
        opened(f"127.0.0.1:{port}")
        threads.extend(site.start(f"127.0.0.1:{port}") for site in sites)

    run = Run(config, folder, config.federation.sites, "test")
    door = Door("127.0.0.1:0", is_insecure=True)
    with _unchanged_identity():
        whole_run(
            run, lambda rounds: serve(rounds, door, check=check, opened=begin), shown=nullcontext(enter_result=listen)
        )
    for thread in threads:
        thread.join(30)
    return events
