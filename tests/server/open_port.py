"""A real port with all services over a temporary folder, and who calls it."""

import hashlib
import importlib
import json
import pkgutil
import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import torch
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from torch import Tensor

import fedlora.v1
from fedlora.adapters.packed import packed_metadata
from fedlora.adapters.tensor_writer import tensor_bytes
from fedlora.client.site.transfer import Metadata
from fedlora.common import certificates
from fedlora.common.certificates import SERVER_NAME
from fedlora.common.channels import SITE_METADATA, Credentials, open_channel
from fedlora.common.config import RunConfig
from fedlora.common.messages import TrainRequest
from fedlora.common.records import to_record
from fedlora.common.wire import PROTOCOL
from fedlora.server.disk.exchange import ExchangeStore, Precision
from fedlora.server.disk.registry import Registry
from fedlora.server.disk.store import RunFolder
from fedlora.server.identity.authority import Authority
from fedlora.server.identity.tickets import Ticket, TicketOffice
from fedlora.server.record.events import Event, SiteChanged
from fedlora.server.sites.grpc.enrolment import EnrolmentService
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.server.sites.grpc.hall import Hall, PresentRun
from fedlora.server.sites.grpc.port import ExternalPair, Port, ServerCertificates
from fedlora.server.sites.grpc.registry import RegistryService, one_run
from fedlora.server.sites.grpc.session import SessionService
from fedlora.server.sites.grpc.transfer import TransferService
from fedlora.v1 import messages_pb2, session_pb2
from fedlora.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub, add_AdapterExchangeServiceServicer_to_server
from fedlora.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from fedlora.v1.session_pb2_grpc import SessionServiceStub, add_SessionServiceServicer_to_server

RUN = RunConfig.model_validate({"run": {"name": "digits"}, "data": {"labels": ["0", "1"]}})
DAY = timedelta(days=1)
DEADLINE_SECONDS = 120.0

ADAPTER = {"A": torch.linspace(-1, 1, 40).reshape(4, 10)}


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    return tensor_bytes(tensors, packed_metadata(json.dumps({"peft_type": "LORA"})))


def blob_of(content: bytes) -> messages_pb2.Blob:
    return messages_pb2.Blob(sha256=hashlib.sha256(content).digest(), size_bytes=len(content))


@dataclass(frozen=True)
class OpenPort:
    """A server with everything but rounds. Without an authority it is plain text, and sites name themselves."""

    folder: Path
    authority: Authority | None
    exchange: ExchangeStore
    tickets: TicketOffice
    grid: GrpcGrid
    registry: Registry
    address: str
    number: int
    gate: Gate
    hall: Hall | None = None
    present: PresentRun | None = None
    """The run of the port; where there is a hall it is put there and taken away."""
    asked: list[str] = field(default_factory=list)
    """The ids of the requests so far."""
    states: dict[str, str] = field(default_factory=dict)
    """What people are told of each site."""
    details: dict[str, str] = field(default_factory=dict)
    """The code that they are told with it."""

    def ask_for_update(self, site: str, *, round: int = 1, attempt: int = 0, max_bytes: int = 64 << 20) -> bytes:
        """Have a site asked for a training, as the strategy does, and return a ticket for its update."""
        request = TrainRequest("run", round, attempt, 0, 1, 0, packed(ADAPTER))
        self.asked.extend(self.grid.push_messages([Message(to_record(request), self.grid.node_of(site), "train")]))
        return self.tickets.issue(Ticket("run", round, attempt, site, max_bytes))

    def upload_of(self, site: str, content_sha256: bytes, *, round: int = 1) -> Path:
        """Return where a site's whole update lies."""
        return self.exchange.upload_file(site, round=round, sha256=content_sha256.hex())


@contextmanager
def open_port(
    folder: Path,
    authority: Authority | None = None,
    *,
    pair: ExternalPair | None = None,
    address: str = "127.0.0.1:0",
    precision: Precision = "float32",
    chunk_seconds: float = DEADLINE_SECONDS,
    run: RunConfig = RUN,
    has_hall: bool = False,
) -> Iterator[OpenPort]:
    """Give an open port; with a hall it is that of a server with many runs, which is at this one."""
    RunFolder(folder / "run").write_manifest({"run_id": "abc", "metric": "accuracy"})
    identity = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    exchange = ExchangeStore(folder / "run" / "exchange", precision=precision)
    tickets = TicketOffice(exchange.ticket_key_file)
    states: dict[str, str] = {}
    details: dict[str, str] = {}

    def listen(event: Event) -> None:
        if isinstance(event, SiteChanged):
            states[event.site], details[event.site] = event.state, event.detail

    grid = GrpcGrid(exchange, tickets, max_start_bytes=1 << 20, listener=listen)
    gate = Gate(authority, run=None if has_hall else run.run.name)
    to_run = gate.for_run(run.run.name)
    registry = Registry(folder / "run", check=lambda _folder: "")

    session = SessionService(grid, exchange, to_run, run)
    transfer = TransferService(exchange, tickets, grid, to_run, chunk_seconds=chunk_seconds)
    present, hall = PresentRun(to_run, session, transfer), Hall(gate, store=folder) if has_hall else None
    if hall is not None:
        hall.present = present

    def add_services(server: grpc.aio.Server) -> None:
        add_SessionServiceServicer_to_server(session if hall is None else hall, server)
        add_AdapterExchangeServiceServicer_to_server(transfer if hall is None else hall.exchange, server)
        shelf = one_run(registry, to_run, run=run.run.name)
        add_RegistryServiceServicer_to_server(RegistryService(shelf, gate), server)
        add_EnrolmentServiceServicer_to_server(EnrolmentService(gate), server)

    credentials = None if authority is None else ServerCertificates(authority, pair).credentials()
    host = address.rpartition(":")[0]
    try:
        with Port(address, credentials, add_services, gate=gate) as port:
            at = f"{host}:{port.number}"
            yield OpenPort(
                folder / "run", authority, exchange, tickets, grid, registry, at, port.number, gate, hall, present,
                states=states, details=details,
            )  # fmt: skip
            registry.close(is_finished=False)
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = identity


def wait_until(claim: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not claim():
        assert time.monotonic() < end
        time.sleep(0.005)


# -- who calls


def named(site: str) -> Metadata:
    """Return how a site names itself where there are no certificates."""
    return ((SITE_METADATA, site),)


def enrolled(authority: Authority, name: str, *runs: str, now: datetime | None = None) -> Credentials:
    """Return the credentials of a site that was enrolled `now`."""
    now = now or datetime.now(UTC)
    authority.invite(name, runs or (RUN.run.name,), 7 * DAY, now)
    key = certificates.generate_key()
    certificate = authority.enrol(name, certificates.signing_request(key, name), now)
    return Credentials(key, certificate, authority.ca_pem, SERVER_NAME)


def invited(authority: Authority, name: str, now: datetime | None = None) -> Credentials:
    """Return the credentials that an invited site makes of its token; the invitation is from `now`, for a week."""
    now = now or datetime.now(UTC)
    token = certificates.parse_token(authority.invite(name, [RUN.run.name], 7 * DAY, now))
    key, certificate = certificates.invitation_pair(token, now=datetime.now(UTC))
    return Credentials(key, certificate, authority.ca_pem, SERVER_NAME)


@contextmanager
def exchange_of(address: str, credentials: Credentials | None = None) -> Iterator[AdapterExchangeServiceStub]:
    with open_channel(address, credentials) as channel:
        yield AdapterExchangeServiceStub(channel)


class Conversation:
    """A site's session, word by word."""

    def __init__(
        self, channel: grpc.Channel, metadata: Metadata = (), *, protocol: int = PROTOCOL, version: str = "0.1"
    ) -> None:
        self._outgoing: queue.SimpleQueue[session_pb2.ConnectRequest | None] = queue.SimpleQueue()
        self.say(hello=session_pb2.Hello(protocol=protocol, version=version))
        connect = SessionServiceStub(channel).Connect
        self._call = connect(iter(self._outgoing.get, None), metadata=metadata, timeout=DEADLINE_SECONDS)

    def __enter__(self) -> "Conversation":
        return self

    def __exit__(self, *_: object) -> None:
        self._outgoing.put(None)
        self._call.cancel()

    def __iter__(self) -> Iterator[session_pb2.ConnectResponse]:
        """Yield all that the server says."""
        return iter(self._call)

    @property
    def num_unsent(self) -> int:
        """How much of what it says the server has not made room for."""
        return self._outgoing.qsize()

    def say(self, **content: object) -> None:
        self._outgoing.put(session_pb2.ConnectRequest(**content))  # type: ignore[arg-type]

    def hear_any(self) -> session_pb2.ConnectResponse:
        """Return the next thing that the server says."""
        response: session_pb2.ConnectResponse = next(self._call)
        return response

    def hear(self, kind: str) -> session_pb2.ConnectResponse:
        """Return the next thing that the server says, which must be of that kind."""
        response = self.hear_any()
        assert response.WhichOneof("content") == kind
        return response

    def hear_end(self) -> tuple[grpc.StatusCode, str]:
        """Return why the server ends the session, whatever it says before."""
        return refusal(lambda: list(self._call))


# -- what they get


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Return status and code of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), str(caught.value.details())


def every_rpc() -> list[MethodDescriptor]:
    """Return all rpcs of our protobuf, and those of the health service."""
    names = [found.name for found in pkgutil.iter_modules(fedlora.v1.__path__) if found.name.endswith("_pb2")]
    modules = [*(importlib.import_module(f"fedlora.v1.{name}") for name in names), health_pb2]
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    return [method for service in services for method in service.methods]


def outcome_of(channel: grpc.Channel, method: MethodDescriptor, metadata: Metadata = ()) -> tuple[grpc.StatusCode, str]:
    """Return what comes of an rpc with one empty message, up to the first of its answers."""
    call: Any = channel.stream_stream(f"/{method.containing_service.full_name}/{method.name}")
    answers = call(iter([b""]), timeout=DEADLINE_SECONDS, metadata=metadata)
    try:
        next(answers, None)
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    finally:
        answers.cancel()
    return grpc.StatusCode.OK, ""
