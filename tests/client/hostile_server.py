"""A server on the generated stubs that does what a test says: it welcomes whoever comes, and asks for what it likes."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from flwr.supercore.task_identity import TaskIdentity

from fedlora.client.site.site_file import SiteConfig
from fedlora.client.site.state import SiteState
from fedlora.client.site.sum_signers import SiteSigners
from fedlora.client.site.taking_part import take_part
from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.common.wire import PROTOCOL
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import (
    AdapterExchangeServiceServicer,
    add_AdapterExchangeServiceServicer_to_server,
)
from fedlora.v1.session_pb2_grpc import SessionServiceServicer, add_SessionServiceServicer_to_server

DEADLINE_SECONDS = 60.0
_OPTIONS = [("grpc.http2.max_ping_strikes", 0)]  # A site looks after its connection more often than gRPC expects.

Content = messages_pb2.TrainRequest | messages_pb2.EvaluateRequest
_NAMES: dict[type, str] = {messages_pb2.TrainRequest: "train", messages_pb2.EvaluateRequest: "evaluate"}


class HostileServer(SessionServiceServicer, AdapterExchangeServiceServicer):
    """One site's server.

    Attributes:
        run_toml: the run that the next connection is welcomed with.
        num_welcomes: how often it says so on one connection.
        committed: what it says of how much of an upload it holds, of so many bytes that came.
        read: the digests that were asked for.
        received_bytes: of all uploads.
        num_full: so many of the next uploads find its disk full.
    """

    def __init__(self, run: RunConfig) -> None:
        self.run_toml = to_toml(run)
        self.num_welcomes = 1
        self.committed: Callable[[int], int] = lambda came: came
        self.files: dict[bytes, bytes] = {}
        self.read: list[bytes] = []
        self.received_bytes = self.num_full = 0
        self._came: dict[bytes, int] = {}
        self._heard: queue.SimpleQueue[session_pb2.ConnectRequest] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[session_pb2.ConnectResponse | None] = queue.SimpleQueue()
        self._num_asked = 0

    def Connect(
        self, request_iterator: Iterator[session_pb2.ConnectRequest], _context: object
    ) -> Iterator[session_pb2.ConnectResponse]:
        outgoing = self._outgoing = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(request_iterator,), daemon=True).start()
        welcome = session_pb2.Welcome(protocol=PROTOCOL, version="0", run_toml=self.run_toml)
        for _ in range(self.num_welcomes):
            yield session_pb2.ConnectResponse(welcome=welcome)
        yield from iter(outgoing.get, None)

    def Read(self, request: exchange_pb2.ReadRequest, _context: object) -> Iterator[exchange_pb2.ReadResponse]:
        self.read.append(request.sha256)
        yield exchange_pb2.ReadResponse(data=self.files[request.sha256][request.offset :])

    def Write(
        self, request_iterator: Iterator[exchange_pb2.WriteRequest], context: grpc.ServicerContext
    ) -> exchange_pb2.WriteResponse:
        if self.num_full:
            self.num_full -= 1
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "disk_full")
        first = next(request_iterator)
        digest, came = first.blob.sha256, first.offset
        for request in (first, *request_iterator):
            came += len(request.data)
            self.received_bytes += len(request.data)
        self._came[digest] = came
        return exchange_pb2.WriteResponse(committed_bytes=self.committed(came))

    def QueryWriteStatus(
        self, request: exchange_pb2.QueryWriteStatusRequest, _context: object
    ) -> exchange_pb2.QueryWriteStatusResponse:
        came = self._came.get(request.blob.sha256, 0)
        return exchange_pb2.QueryWriteStatusResponse(committed_bytes=self.committed(came))

    def offer(self, packed: bytes) -> messages_pb2.OfferedAdapter:
        digest = hashlib.sha256(packed).digest()
        self.files[digest] = packed
        return messages_pb2.OfferedAdapter(whole=messages_pb2.Blob(sha256=digest, size_bytes=len(packed)))

    def ask(self, content: Content, adapter: bytes | messages_pb2.OfferedAdapter) -> session_pb2.Answer:
        """Return the site's answer to a request, with this adapter on offer."""
        self._num_asked += 1
        asked = session_pb2.Request(request_id=str(self._num_asked), ticket=b"ticket", precision="float32")
        asked.adapter.CopyFrom(self.offer(adapter) if isinstance(adapter, bytes) else adapter)
        getattr(asked, _NAMES[type(content)]).CopyFrom(content)
        self._outgoing.put(session_pb2.ConnectResponse(request=asked))
        while (answer := self.heard("answer").answer).request_id != asked.request_id:
            pass
        return answer

    def heard(self, what: str) -> session_pb2.ConnectRequest:
        """Return the next thing of this kind that the site says."""
        while (said := self._heard.get(timeout=DEADLINE_SECONDS)).WhichOneof("content") != what:
            pass
        return said

    def hang_up(self, run: RunConfig) -> None:
        """End the connection, and welcome the site with another run when it comes back."""
        self.run_toml = to_toml(run)
        self._outgoing.put(None)

    def _listen(self, requests: Iterator[session_pb2.ConnectRequest]) -> None:
        try:
            for request in requests:
                self._heard.put(request)
        except grpc.RpcError:
            pass  # The site has gone.


@contextmanager
def serving(hostile: HostileServer) -> Iterator[str]:
    """Yield the address at which a hostile server listens."""
    server = grpc.server(ThreadPoolExecutor(16), options=_OPTIONS)
    add_SessionServiceServicer_to_server(hostile, server)
    add_AdapterExchangeServiceServicer_to_server(hostile, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def site_at_hostile_server(run: RunConfig, site: SiteConfig, folder: Path) -> Iterator[HostileServer]:
    """Yield a hostile server on loopback with a real site, worker and all, that has connected to it."""
    identity = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    hostile = HostileServer(run)
    with serving(hostile) as address, SiteState(folder / "site") as state:
        state.control("")
        taking_part = threading.Thread(
            target=take_part,
            args=(address, site),
            kwargs={
                "beside": folder,
                "state": state,
                "credentials": lambda: None,
                "signer_of": SiteSigners(state.folder, address, is_insecure=True),
            },
            daemon=True,
        )
        taking_part.start()
        try:
            yield hostile
        finally:
            state.control("leave")
            taking_part.join(DEADLINE_SECONDS)
            TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = identity
