"""The session service: a site's lasting connection, between its stream and the Grid."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.message import Message

from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, DiskFull, FedloraError, RunError
from fedlora.common.messages import UNREADABLE, Failure
from fedlora.common.packed_file import Packed, PackedFile
from fedlora.common.phases import announce
from fedlora.common.printable import printable
from fedlora.common.run_file import to_toml
from fedlora.common.schema import discard_local, to_proto
from fedlora.common.wire import PROTOCOL, read_description, read_receipt, receipt_in
from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.sites.grpc.gate import Context, Gate, refuse
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.server.sites.grpc.known_site import Outstanding
from fedlora.server.sites.grpc.outgoing import Outgoing, Response
from fedlora.v1 import session_pb2
from fedlora.v1.session_pb2_grpc import SessionServiceServicer

logger = logging.getLogger(__name__)

_HELLO_SECONDS = 30.0
# The code of a run that is over, or stops.
_DRAINED = "drained"
_LOOK_SECONDS = 5.0
_FULL_PAUSE_SECONDS = 2.0
_MAX_CHARACTERS = 300
# Of a request's id, which is ours.
_MOST_CHARACTERS = 64
# Of what a site says at a time: numbers under a few names. Adapters go another way.
_MOST_BYTES = 64 << 10
# A site says that it is ready, or is not, at the begin and now and then.
_MOST_READINESS, _READINESS_PAUSE_SECONDS = 20, 1.0


class SessionService(SessionServiceServicer):
    """Carries requests to sites and answers from them."""

    def __init__(self, grid: GrpcGrid, exchange: ExchangeStore, gate: Gate, config: RunConfig) -> None:
        self._grid = grid
        self._exchange = exchange
        self._gate = gate
        self._config = config

    async def Connect(
        self, request_iterator: AsyncIterator[session_pb2.ConnectRequest], context: Context
    ) -> AsyncIterator[session_pb2.ConnectResponse]:
        """Serve one connection of a site for as long as it stands."""
        site = await self._gate.site(context)
        await greet(self._gate, site, request_iterator, context)
        async for response in told(self._gate, site, self.serve(site, request_iterator, context), context):
            yield response

    async def serve(
        self, site: str, request_iterator: AsyncIterator[session_pb2.ConnectRequest], context: Context
    ) -> AsyncGenerator[Response, None]:
        """Serve the connection of a site that has said its Hello, from the run's Welcome on; see `told`."""
        standing = self._gate.standing(context)
        outgoing = Outgoing()
        self._grid.connect(site, outgoing.send, standing)
        listening = asyncio.create_task(self._listen(site, request_iterator, outgoing, context))
        try:
            num_ready, _ = self._grid.counts()
            welcome = session_pb2.Welcome(
                protocol=PROTOCOL,
                version=version("fedlora"),
                run_toml=to_toml(self._config, comments=False),
                num_ready=num_ready,
                num_expected=self._config.federation.sites,
                unix_seconds=int(time.time()),
            )
            yield session_pb2.ConnectResponse(welcome=welcome)
            while not (code := standing()):
                try:
                    response = await outgoing.next(seconds=_LOOK_SECONDS)
                except TimeoutError:
                    continue
                if not isinstance(response, str) and response.HasField("request"):
                    announce("send")
                yield response
            if code != "expired":
                self._grid.shut_out(site, code)
            yield code
        finally:
            listening.cancel()
            self._grid.disconnect(site, outgoing.send)

    async def _listen(
        self, site: str, stream: AsyncIterator[session_pb2.ConnectRequest], outgoing: Outgoing, context: Context
    ) -> None:
        """Take what the site says until it says no more, and no faster than it reads what it is answered."""
        num_readiness = 0
        try:
            async for request in stream:
                await outgoing.room()
                match request.WhichOneof("content"):
                    case "readiness":
                        num_readiness += 1
                        if num_readiness > _MOST_READINESS:
                            await asyncio.sleep(_READINESS_PAUSE_SECONDS)
                        self._take_readiness(site, request.readiness, context)
                    case "answer":
                        await self._take_answer(site, request.answer, context)
        except (grpc.RpcError, grpc.aio.AbortError):
            pass  # The connection is gone, which the other direction notices too.
        except Exception:
            logger.exception("%s: a message could not be handled; its connection is closed", site)
        outgoing.put("ended")

    def _take_readiness(self, site: str, readiness: session_pb2.Readiness, context: Context) -> None:
        if readiness.WhichOneof("content") != "description":
            self._grid.not_ready(site, _code(readiness.reason))
            return
        # A site is who its certificate says, whatever it calls itself.
        try:
            _require_short(readiness)
            description = read_description(
                readiness.description, site=site, labels=self._config.data.labels, base_model=self._config.model.name
            )
        except RunError as error:
            self._gate.note(context, UNREADABLE, site=site, why=error)
            self._grid.not_ready(site, UNREADABLE)
        else:
            self._grid.ready(site, description)

    async def _take_answer(self, site: str, answer: session_pb2.Answer, context: Context) -> None:
        if len(answer.request_id) > _MOST_CHARACTERS:
            self._gate.note(context, "no_request", site=site, why="an answer to no request of ours is left unread")
            return
        outstanding = self._grid.outstanding(site, answer.request_id)
        if outstanding is None:
            return
        announce("collect")
        receipt: Message
        adapter: Packed = b""
        try:
            _require_short(answer)
            read_receipt(answer)  # For its checks: the rounds get what came, but for what a peer may not say.
            receipt = receipt_in(answer)
            discard_local(receipt)
            if answer.HasField("train"):
                answer.train.wire_sha256 = answer.adapter.encoded.sha256.hex()
            while True:
                try:
                    adapter = await asyncio.to_thread(self._adapter, site, answer, outstanding)
                    break
                except DiskFull:
                    # Not the site's fault, and no reason to go on without it.
                    await asyncio.sleep(_FULL_PAUSE_SECONDS)
        except (AdapterError, RunError) as error:
            receipt = to_proto(Failure(UNREADABLE, printable(error, most=_MAX_CHARACTERS)), with_local=True)
            adapter = await asyncio.to_thread(self._as_it_came, site, answer)
        except FedloraError as error:
            # Not the site's fault, and not to be acknowledged.
            logger.error("%s: its update could not be stored: %s", site, error)
            receipt = to_proto(Failure("not_stored", str(error)), with_local=True)
        self._grid.answer(site, answer.request_id, receipt, adapter)

    def _adapter(self, site: str, answer: session_pb2.Answer, outstanding: Outstanding) -> Packed:
        """Return the file of an answer's adapter, which lies in the exchange; empty bytes where it has none."""
        if not answer.HasField("adapter") or answer.WhichOneof("content") not in ("train", "initialise", "sum"):
            return b""
        upload = self._upload(site, answer)
        if answer.HasField("sum"):
            return PackedFile(upload, upload.stat().st_size)
        round, sha256 = answer.train.round, answer.adapter.encoded.sha256.hex()
        whole = self._exchange.whole_update(site, round=round, sha256=sha256, offer=outstanding.offer)
        return PackedFile(whole, upload.stat().st_size)

    def _upload(self, site: str, answer: session_pb2.Answer) -> Path:
        """Return the file of the update that came for an answer.

        Raises:
            AdapterError: there is none.
        """
        # The run's first adapter is of round 0.
        round = answer.sum.round if answer.HasField("sum") else answer.train.round
        sha256 = answer.adapter.encoded.sha256.hex()
        if len(sha256) != 64 or not 0 <= round < 10**6:
            raise AdapterError("an update without a digest")
        upload = self._exchange.upload_file(site, round=round, sha256=sha256)
        if not upload.is_file():
            raise AdapterError("an answer whose update was not uploaded")
        return upload

    def _as_it_came(self, site: str, answer: session_pb2.Answer) -> Packed:
        """Return the update of an answer that cannot be read; empty bytes where there is none."""
        try:
            upload = self._upload(site, answer)
            return PackedFile(upload, upload.stat().st_size)
        except (AdapterError, OSError):
            return b""


async def greet(gate: Gate, site: str, stream: AsyncIterator[session_pb2.ConnectRequest], context: Context) -> None:
    """Take the Hello with which a connection begins; one of another protocol ends here, named."""
    try:
        first = await asyncio.wait_for(anext(stream), _HELLO_SECONDS)
    except (TimeoutError, StopAsyncIteration):
        await gate.turn_down(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no_hello", site=site)
    if not first.HasField("hello"):
        await gate.turn_down(context, grpc.StatusCode.FAILED_PRECONDITION, "no_hello", site=site)
    await gate.require_protocol(context, first.hello.protocol, first.hello.version, site=site)


async def told(
    gate: Gate, site: str, responses: AsyncGenerator[Response, None], context: Context
) -> AsyncIterator[session_pb2.ConnectResponse]:
    """Yield what a site is told over its connection, and end that with the code that comes last.

    Here, and not where the responses come from: of a site that reads nothing the end takes long, and that has a run.
    """
    code = _DRAINED
    async with aclosing(responses):
        async for response in responses:
            if isinstance(response, str):
                code = response
                break
            yield response
    if gate.standing(context)() == code:
        await gate.send_away(context, code, site=site)
    await refuse(context, grpc.StatusCode.ABORTED, code)


def _require_short(said: Message) -> None:
    """Check that reading something takes no time to speak of.

    Raises:
        RunError: it may.
    """
    if (size := said.ByteSize()) > _MOST_BYTES:
        raise RunError(f"a site sent {size:,} bytes at a time; expected at most {_MOST_BYTES:,}")


def _code(reason: str) -> str:
    """Return a code that a site sent, if it is one: its words may be chosen by an attacker."""
    return reason if 0 < len(reason) <= 40 and reason.replace("_", "").isalpha() and reason.islower() else "unknown"
