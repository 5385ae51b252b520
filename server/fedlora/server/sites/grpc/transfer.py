"""The exchange service: files to and from sites, chunk by chunk."""

import asyncio
import hashlib
import io
import logging
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

import grpc

from fedlora.common.channels import CHUNK_BYTES, DISK_FULL
from fedlora.common.files import replace_file, sha256_of
from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.disk.space import LEAST_FREE_BYTES
from fedlora.server.identity.tickets import Ticket, TicketOffice
from fedlora.server.sites.grpc.gate import Context, Gate, refuse
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.v1 import exchange_pb2, messages_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceServicer

logger = logging.getLogger(__name__)

_PART = ".part"
_CHUNK_SECONDS = 60.0
# A chunk smaller than this is only ever the last one.
_LEAST_CHUNK_BYTES = 16 << 10
_INVALID = grpc.StatusCode.INVALID_ARGUMENT


class TransferService(AdapterExchangeServiceServicer):
    """Sends what is on offer, and takes updates that hold a ticket."""

    def __init__(
        self,
        exchange: ExchangeStore,
        tickets: TicketOffice,
        grid: GrpcGrid,
        gate: Gate,
        *,
        chunk_seconds: float = _CHUNK_SECONDS,
        full: Callable[[], object] = lambda: None,
    ) -> None:
        """Send and take files.

        Args:
            chunk_seconds: the longest that an upload may keep the server waiting for its next chunk.
            full: called where an upload finds no room on the disk.
        """
        self._exchange = exchange
        self._tickets = tickets
        self._grid = grid
        self._gate = gate
        self._chunk_seconds = chunk_seconds
        self._full = full
        self._uploading: set[str] = set()

    async def Read(
        self, request: exchange_pb2.ReadRequest, context: Context
    ) -> AsyncGenerator[exchange_pb2.ReadResponse, None]:
        """Send a file on offer from an offset on."""
        await self._gate.site(context)
        path = self._exchange.find(request.sha256.hex())
        if path is None:
            await refuse(context, grpc.StatusCode.NOT_FOUND, "not_on_offer")
        with open(path, "rb", buffering=0) as file:
            if request.offset > os.fstat(file.fileno()).st_size:
                await refuse(context, grpc.StatusCode.OUT_OF_RANGE, "offset")
            file.seek(request.offset)
            while chunk := file.read(CHUNK_BYTES):
                yield exchange_pb2.ReadResponse(data=chunk)
                self._grid.count(down=len(chunk))

    async def QueryWriteStatus(
        self, request: exchange_pb2.QueryWriteStatusRequest, context: Context
    ) -> exchange_pb2.QueryWriteStatusResponse:
        """Say how much of an update is here."""
        _, path = await self._place(request.ticket, request.blob, context)
        committed = await asyncio.to_thread(_committed, path, request.blob)
        return exchange_pb2.QueryWriteStatusResponse(committed_bytes=committed)

    async def Write(
        self, request_iterator: AsyncIterator[exchange_pb2.WriteRequest], context: Context
    ) -> exchange_pb2.WriteResponse:
        """Take an update from the committed offset on."""
        site = await self._gate.site(context)
        first = await self._next(request_iterator, context, site)
        if first is None:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "empty")
        ticket, path = await self._place(first.ticket, first.blob, context)
        if path.is_file():
            return exchange_pb2.WriteResponse(committed_bytes=first.blob.size_bytes)
        self._uploading.add(ticket.site)
        try:
            committed = await self._take(first, request_iterator, path, context, ticket=ticket)
        except OSError as error:
            logger.error("%s: its upload cannot be stored: %s", ticket.site, error.strerror)
            await self._refuse_for_space(context)
        finally:
            self._uploading.discard(ticket.site)
        return exchange_pb2.WriteResponse(committed_bytes=committed)

    async def _place(self, raw: bytes, blob: messages_pb2.Blob, context: Context) -> tuple[Ticket, Path]:
        """Return the ticket in `raw`, if it is good for this caller and this file, and where the file belongs."""
        site = await self._gate.site(context)
        ticket = self._tickets.read(raw)
        if ticket is None or ticket.site != site:
            await self._gate.turn_down(context, grpc.StatusCode.PERMISSION_DENIED, "ticket", site=site)
        if not self._grid.expects(ticket):
            await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "not_expected")
        if len(blob.sha256) != 32 or not 0 < blob.size_bytes <= ticket.max_bytes:
            await self._gate.turn_down(context, grpc.StatusCode.INVALID_ARGUMENT, "size", site=site)
        # Before the upload's place is asked for, which clears the site's other uploads away.
        if site in self._uploading:
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "one_upload_at_a_time")
        return ticket, self._exchange.upload_file(site, round=ticket.round, sha256=blob.sha256.hex())

    async def _take(
        self,
        first: exchange_pb2.WriteRequest,
        rest: AsyncIterator[exchange_pb2.WriteRequest],
        path: Path,
        context: Context,
        *,
        ticket: Ticket,
    ) -> int:
        """Append what comes to the part of a file, and make it whole at the end; return how much is committed.

        Each chunk has its time, and all of them no longer than the round: one that trickles ends with it.
        """
        size, part = first.blob.size_bytes, path.with_name(path.name + _PART)
        have = part.stat().st_size if part.is_file() else 0
        if first.offset != have:
            await refuse(context, grpc.StatusCode.OUT_OF_RANGE, "offset")
        if shutil.disk_usage(path.parent).free < size - have + LEAST_FREE_BYTES:
            await self._refuse_for_space(context)
        with open(part, "a+b", buffering=0) as file:
            # A site may begin again and again, and others are not to wait for gigabytes that are read again.
            digest = await asyncio.to_thread(_digest_so_far, file)
            request: exchange_pb2.WriteRequest | None = first
            while request is not None:
                chunk = request.data
                have += len(chunk)
                if have > size:
                    await self._gate.turn_down(context, _INVALID, "longer_than_announced", site=ticket.site)
                if request is not first and len(chunk) < _LEAST_CHUNK_BYTES and have < size:
                    await self._gate.turn_down(context, _INVALID, "chunks_too_small", site=ticket.site)
                if not _is_written(file, chunk):
                    await self._refuse_for_space(context)
                digest.update(chunk)
                self._grid.count(up=len(chunk))
                request = await self._next(rest, context, ticket.site) if have < size else None
                if request is not None and not self._grid.expects(ticket):
                    await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "not_expected")
            if have < size:
                return have
        if digest.digest() != first.blob.sha256:
            part.unlink()
            await self._gate.turn_down(context, grpc.StatusCode.DATA_LOSS, "digest", site=ticket.site)
        await asyncio.to_thread(replace_file, part, path)
        return have

    async def _next(
        self, stream: AsyncIterator[exchange_pb2.WriteRequest], context: Context, site: str
    ) -> exchange_pb2.WriteRequest | None:
        """Return the next chunk, None at the stream's end; a stream that stalls is ended."""
        try:
            return await asyncio.wait_for(anext(stream), self._chunk_seconds)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            await self._gate.turn_down(context, grpc.StatusCode.DEADLINE_EXCEEDED, "too_slow", site=site)

    async def _refuse_for_space(self, context: Context) -> NoReturn:
        """End an upload for which there is no room; whoever operates the server is told, and the site tries again."""
        await asyncio.to_thread(self._full)
        await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, DISK_FULL)


def _committed(path: Path, blob: messages_pb2.Blob) -> int:
    """Return how much of an update is here: all of it, or the size of its part.

    A part that is all there is one whose server ended before it was checked. Who sent it will not send more.
    """
    if path.is_file():
        return blob.size_bytes
    part = path.with_name(path.name + _PART)
    have = part.stat().st_size if part.is_file() else 0
    if have < blob.size_bytes:
        return have
    if bytes.fromhex(sha256_of([part])) != blob.sha256:
        part.unlink()
        return 0
    replace_file(part, path)
    return blob.size_bytes


def _digest_so_far(file: io.FileIO) -> "hashlib._Hash":
    """Return the digest of what is in a file, which is read to its end."""
    digest = hashlib.sha256()
    file.seek(0)
    while block := file.read(CHUNK_BYTES):
        digest.update(block)
    return digest


def _is_written(file: io.FileIO, chunk: bytes) -> bool:
    """Return whether all of a chunk went to the disk: a nearly full one takes a piece, and says nothing."""
    try:
        return file.write(chunk) == len(chunk)
    except OSError:
        return False
