"""Files between a site's disk and the server: from where they stopped, and checked at the end."""

import hashlib
import io
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from fedlora.common.channels import CHUNK_BYTES, DISK_FULL, details_of
from fedlora.common.errors import RunError, StoreError
from fedlora.common.files import replace_file
from fedlora.common.open_files import require_descriptors
from fedlora.common.phases import announce
from fedlora.v1 import exchange_pb2, messages_pb2

_MAX_DAMAGED = 3
_MAX_FRUITLESS = 4
_MAX_TIMES_SENT = 4
# A server without room says so at an upload's first chunk, when some more are on their way.
_BYTES_ON_THE_WAY = 16 * CHUNK_BYTES
_FIRST_PAUSE_SECONDS = 0.05
LEAST_FREE_BYTES = 64 << 20

Metadata = tuple[tuple[str, str | bytes], ...]


class UploadGivenUp(RunError):  # noqa: N818 (it says what happened)
    """A server that takes an update without end and never holds it."""

    code = "not_taken"


class Exchange(Protocol):
    """What is used of the exchange service's stub."""

    # grpc's own classes cannot be subscripted when the program runs.
    Read: "grpc.UnaryStreamMultiCallable[exchange_pb2.ReadRequest, exchange_pb2.ReadResponse]"
    Write: "grpc.StreamUnaryMultiCallable[exchange_pb2.WriteRequest, exchange_pb2.WriteResponse]"
    QueryWriteStatus: (
        "grpc.UnaryUnaryMultiCallable[exchange_pb2.QueryWriteStatusRequest, exchange_pb2.QueryWriteStatusResponse]"
    )


def download(
    exchange: Exchange,
    blob: messages_pb2.Blob,
    target: Path,
    *,
    metadata: Metadata = (),
    count: Callable[[int], None] = lambda _num_bytes: None,
) -> int:
    """Fetch the file of a blob to `target`, from where an earlier download stopped; return the bytes that came.

    Args:
        count: is told of each chunk's bytes as it comes; what it raises ends the download.

    Raises:
        grpc.RpcError: the connection broke; calling again goes on.
        RunError: the content is not what its digest says, three times.
        StoreError: there is no room for it.
    """
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.is_file() else 0
    if shutil.disk_usage(target.parent).free < blob.size_bytes - have + LEAST_FREE_BYTES:
        raise StoreError(f"{target.parent}: {blob.size_bytes:,} bytes do not fit; free some space")

    def read(offset: int) -> Iterator[bytes]:
        request = exchange_pb2.ReadRequest(sha256=blob.sha256, offset=offset)
        for response in exchange.Read(request, metadata=metadata):
            count(len(response.data))
            yield response.data

    num_bytes = complete(part, blob, read, what=f"the adapter {blob.sha256.hex()[:12]}")
    replace_file(part, target)
    return num_bytes


def complete(path: Path, blob: messages_pb2.Blob, read: Callable[[int], Iterator[bytes]], *, what: str) -> int:
    """Bring a file to the whole of a blob, from as much of it as is there; return the bytes that came.

    Args:
        read: gives the chunks from an offset on.
        what: the file, for errors.

    Raises:
        RunError: the content is not what its digest says, three times.
        StoreError: the disk is full.
        What `read` raises; calling again goes on.
    """
    num_bytes = 0
    for _ in range(_MAX_DAMAGED):
        have = path.stat().st_size if path.is_file() else 0
        if have < blob.size_bytes:
            with open(path, "ab", buffering=0) as file:
                for chunk in read(have):
                    have += len(chunk)
                    num_bytes += len(chunk)
                    # A stream of nothing would never end.
                    if have > blob.size_bytes or not chunk:
                        break
                    _write(file, chunk, path)
        if have == blob.size_bytes and _sha256(path) == blob.sha256:
            return num_bytes
        if have >= blob.size_bytes:
            path.unlink()
    raise RunError(f"{what} came damaged {_MAX_DAMAGED} times")


@dataclass
class Effort:
    """What an update has cost so far, over all connections.

    Attributes:
        sent_bytes: that went into uploads, arrived or not.
        committed_bytes: the most that the server has said it holds.
        num_fruitless: uploads in a row that went to their end and after which it held no more.
    """

    sent_bytes: int = 0
    committed_bytes: int = 0
    num_fruitless: int = 0

    def look(self, committed_bytes: int, blob: messages_pb2.Blob) -> None:
        """Take what the server says that it holds.

        Raises:
            UploadGivenUp: it says what cannot be, or all that was sent has led to nothing.
        """
        if committed_bytes > blob.size_bytes:
            raise UploadGivenUp(
                f"the server says that it holds {committed_bytes:,} bytes of an update of {blob.size_bytes:,}"
            )
        if committed_bytes > self.committed_bytes:
            self.committed_bytes, self.num_fruitless = committed_bytes, 0
        if self.num_fruitless > _MAX_FRUITLESS or self.sent_bytes > _MAX_TIMES_SENT * blob.size_bytes:
            raise UploadGivenUp(
                f"the server says that it holds {committed_bytes:,} of the update's {blob.size_bytes:,} bytes after "
                f"{self.sent_bytes:,} were sent; the upload is given up"
            )

    def pause(self) -> None:
        """Wait before the next attempt, longer each time that one led to nothing."""
        if self.num_fruitless:
            time.sleep(_FIRST_PAUSE_SECONDS * 2**self.num_fruitless)


def upload(
    exchange: Exchange,
    ticket: bytes,
    path: Path,
    blob: messages_pb2.Blob,
    *,
    metadata: Metadata = (),
    effort: Effort | None = None,
) -> int:
    """Send the file of a blob from where an earlier upload stopped; return the bytes that went.

    Args:
        effort: what earlier calls for this file have cost; it goes on counting.

    Raises:
        grpc.RpcError: the connection broke, and calling again goes on; or the server refuses, and says why.
        RunError: it arrived damaged three times.
        UploadGivenUp: the server takes it again and again, and never holds it.
    """
    query = exchange_pb2.QueryWriteStatusRequest(ticket=ticket, blob=blob)
    effort = effort or Effort()
    num_bytes, num_damaged = 0, 0
    while True:
        have = exchange.QueryWriteStatus(query, metadata=metadata).committed_bytes
        if have == blob.size_bytes:
            return num_bytes
        effort.look(have, blob)
        effort.pause()
        sent: list[int] = []
        num_free = 0
        try:
            chunks = _chunks(ticket, path, blob, have, sent)
            num_bytes += exchange.Write(chunks, metadata=metadata).committed_bytes - have
            effort.num_fruitless += 1
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                effort.num_fruitless += 1
                continue
            num_free = _BYTES_ON_THE_WAY if details_of(error) == DISK_FULL else 0
            if error.code() is not grpc.StatusCode.DATA_LOSS:
                raise
            num_damaged += 1
            if num_damaged == _MAX_DAMAGED:
                raise RunError(f"the update {blob.sha256.hex()[:12]} arrived damaged {num_damaged} times") from error
        finally:
            effort.sent_bytes += max(0, sum(sent) - num_free)


def _chunks(
    ticket: bytes, path: Path, blob: messages_pb2.Blob, offset: int, sent: list[int]
) -> Iterator[exchange_pb2.WriteRequest]:
    """Yield an upload's messages from an offset on, and note in `sent` how many bytes each of them has."""
    # In two halves at least, so that there is a half.
    half = (blob.size_bytes + 1) // 2
    with open(path, "rb") as file:
        file.seek(offset)
        request = exchange_pb2.WriteRequest(ticket=ticket, blob=blob, offset=offset)
        while chunk := file.read(min(CHUNK_BYTES, half)):
            request.data = chunk
            sent.append(len(chunk))
            yield request
            before, offset = offset, offset + len(chunk)
            if before < half <= offset:
                announce("upload at half")
            request = exchange_pb2.WriteRequest()


def _write(file: io.FileIO, chunk: bytes, target: Path) -> None:
    # A nearly full disk takes a piece, and says nothing.
    try:
        written = file.write(chunk)
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"{target}: cannot be written ({error.strerror}); free some space") from error
    if written != len(chunk):
        raise StoreError(f"{target}: the disk is full; free some space")


def _sha256(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
