"""The exchange as the server gives it, message by message: what is taken, from where on, and what is refused."""

import queue
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from open_port import OpenPort, blob_of, exchange_of, named, open_port, refusal, wait_until

from fedlora.v1 import exchange_pb2, messages_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

CONTENT = torch.randint(0, 256, (200_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
UPDATE = CONTENT.tobytes()
HALF = 100_000
NORTH = named("north")

Write = Callable[..., exchange_pb2.WriteResponse]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


@pytest.fixture
def exchange(port: OpenPort) -> Iterator[AdapterExchangeServiceStub]:
    with exchange_of(port.address) as exchange:
        yield exchange


@pytest.fixture
def ticket(port: OpenPort) -> bytes:
    return port.ask_for_update("north", max_bytes=10**6)


@pytest.fixture
def committed(exchange: AdapterExchangeServiceStub, ticket: bytes) -> Callable[[], int]:
    def ask() -> int:
        query = exchange_pb2.QueryWriteStatusRequest(ticket=ticket, blob=blob_of(UPDATE))
        return int(exchange.QueryWriteStatus(query, metadata=NORTH).committed_bytes)

    return ask


@pytest.fixture
def write(exchange: AdapterExchangeServiceStub, ticket: bytes) -> Write:
    """Return what uploads chunks, by default under the name of the whole update."""

    def upload(*chunks: bytes, offset: int = 0, blob: messages_pb2.Blob | None = None) -> exchange_pb2.WriteResponse:
        first, *rest = chunks
        head = exchange_pb2.WriteRequest(ticket=ticket, blob=blob or blob_of(UPDATE), offset=offset, data=first)
        requests = [head, *(exchange_pb2.WriteRequest(data=chunk) for chunk in rest)]
        response: exchange_pb2.WriteResponse = exchange.Write(iter(requests), metadata=NORTH)
        return response

    return upload


def part_of(port: OpenPort) -> Path:
    whole = port.upload_of("north", blob_of(UPDATE).sha256)
    return whole.with_name(f"{whole.name}.part")


def test_an_upload_goes_on_at_the_committed_offset_and_at_no_other(
    port: OpenPort, write: Write, committed: Callable[[], int]
) -> None:
    assert write(UPDATE[:HALF]).committed_bytes == HALF == committed()
    for offset in (0, HALF - 1, HALF + 1, 2**63):
        assert refusal(lambda at=offset: write(UPDATE[HALF:], offset=at)) == (grpc.StatusCode.OUT_OF_RANGE, "offset")  # type: ignore[misc]
    assert write(UPDATE[HALF:150_000], UPDATE[150_000:], offset=HALF).committed_bytes == len(UPDATE) == committed()
    assert port.upload_of("north", blob_of(UPDATE).sha256).read_bytes() == UPDATE


def test_case_11_the_same_upload_twice_is_taken_once(
    port: OpenPort, write: Write, committed: Callable[[], int]
) -> None:
    write(UPDATE)
    assert port.grid.traffic().bytes_up == len(UPDATE)
    before = port.upload_of("north", blob_of(UPDATE).sha256).stat()
    assert write(UPDATE).committed_bytes == len(UPDATE) == committed()
    assert port.grid.traffic().bytes_up == len(UPDATE)
    assert port.upload_of("north", blob_of(UPDATE).sha256).stat() == before


def test_case_16_a_flipped_bit_is_found_and_the_upload_begins_again(write: Write, committed: Callable[[], int]) -> None:
    damaged = bytearray(UPDATE)
    damaged[12_345] ^= 1
    write(bytes(damaged[:HALF]))
    assert refusal(lambda: write(UPDATE[HALF:], offset=HALF)) == (grpc.StatusCode.DATA_LOSS, "digest")
    assert committed() == 0
    assert write(UPDATE).committed_bytes == len(UPDATE)


def test_an_update_that_a_crash_left_unchecked_is_checked_before_it_counts(
    port: OpenPort, committed: Callable[[], int]
) -> None:
    part = part_of(port)
    part.write_bytes(UPDATE[:-1] + b"?")
    assert committed() == 0
    assert not part.exists()
    part.write_bytes(UPDATE)
    assert committed() == len(UPDATE)
    assert port.upload_of("north", blob_of(UPDATE).sha256).read_bytes() == UPDATE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"size_bytes": 0}, "size"),
        ({"size_bytes": 10**6 + 1}, "size"),
        ({"size_bytes": 2**63}, "size"),
        ({"sha256": b""}, "size"),
        ({"sha256": b"../../../../../../etc/passwd----"[:31]}, "size"),
        ({"size_bytes": len(UPDATE) - 1}, "longer_than_announced"),
    ],
    ids=str,
)
def test_case_18_an_oversize_upload_and_one_longer_than_announced_are_refused(
    port: OpenPort, write: Write, changes: dict[str, object], code: str
) -> None:
    blob = blob_of(UPDATE)
    for name, value in changes.items():
        setattr(blob, name, value)
    assert refusal(lambda: write(UPDATE[:HALF], UPDATE[HALF:], blob=blob)) == (grpc.StatusCode.INVALID_ARGUMENT, code)
    assert sum(path.stat().st_size for path in (port.exchange.folder / "uploads").rglob("*-*.part")) <= HALF


def test_case_18_a_message_of_seventeen_megabytes_is_refused(write: Write) -> None:
    status, text = refusal(lambda: write(bytes(17 << 20)))
    assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in text


def test_case_18_ten_thousand_tiny_chunks_are_refused_at_the_first(write: Write, committed: Callable[[], int]) -> None:
    tiny = [UPDATE[start : start + 20] for start in range(0, len(UPDATE), 20)]
    assert len(tiny) == 10_000
    assert refusal(lambda: write(*tiny)) == (grpc.StatusCode.INVALID_ARGUMENT, "chunks_too_small")
    assert committed() <= 20


class Stream:
    """An upload whose chunks come when the test says so."""

    def __init__(self, exchange: AdapterExchangeServiceStub, *requests: exchange_pb2.WriteRequest) -> None:
        self.outgoing: queue.SimpleQueue[exchange_pb2.WriteRequest | None] = queue.SimpleQueue()
        for request in requests:
            self.outgoing.put(request)
        self.answer = exchange.Write.future(iter(self.outgoing.get, None), metadata=NORTH)

    def end(self) -> int:
        self.outgoing.put(None)
        return int(self.answer.result(timeout=10).committed_bytes)


def test_case_18_a_stream_that_trickles_is_ended_and_goes_on_later(tmp_path: Path) -> None:
    with open_port(tmp_path, chunk_seconds=0.3) as port, exchange_of(port.address) as exchange:
        ticket = port.ask_for_update("north")
        head = exchange_pb2.WriteRequest(ticket=ticket, blob=blob_of(UPDATE), data=UPDATE[:HALF])
        for stream in (Stream(exchange), Stream(exchange, head)):
            assert refusal(stream.answer.result) == (grpc.StatusCode.DEADLINE_EXCEEDED, "too_slow")
            stream.outgoing.put(None)
        rest = exchange_pb2.WriteRequest(ticket=ticket, blob=blob_of(UPDATE), offset=HALF, data=UPDATE[HALF:])
        assert exchange.Write(iter([rest]), metadata=NORTH).committed_bytes == len(UPDATE)


def test_two_uploads_of_one_site_at_once_are_refused_and_the_first_goes_on(
    port: OpenPort,
    exchange: AdapterExchangeServiceStub,
    ticket: bytes,
    write: Write,
    committed: Callable[[], int],
) -> None:
    head = exchange_pb2.WriteRequest(ticket=ticket, blob=blob_of(UPDATE), data=UPDATE[:HALF])
    stream = Stream(exchange, head)
    wait_until(lambda: port.grid.traffic().bytes_up == HALF)
    busy = (grpc.StatusCode.RESOURCE_EXHAUSTED, "one_upload_at_a_time")
    assert refusal(lambda: write(UPDATE)) == busy
    # Also under another name, which would clear the first one away.
    assert refusal(lambda: write(b"other", blob=blob_of(b"other"))) == busy
    assert refusal(committed) == busy
    with exchange_of(port.address) as other:
        theirs = port.ask_for_update("south")
        request = exchange_pb2.WriteRequest(ticket=theirs, blob=blob_of(b"theirs"), data=b"theirs")
        assert other.Write(iter([request]), metadata=named("south")).committed_bytes == 6
    stream.outgoing.put(exchange_pb2.WriteRequest(data=UPDATE[HALF:]))
    assert stream.end() == len(UPDATE)


def test_an_upload_that_nobody_expects_is_refused(port: OpenPort, write: Write, committed: Callable[[], int]) -> None:
    port.grid.withdraw(port.asked)
    for call in (lambda: write(UPDATE), committed):
        assert refusal(call) == (grpc.StatusCode.FAILED_PRECONDITION, "not_expected")
    assert not (port.exchange.folder / "uploads").exists()


def test_a_full_disk_is_said_before_anything_is_written(
    port: OpenPort, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=64 << 20))
    assert refusal(lambda: write(UPDATE)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "disk_full")
    assert list(part_of(port).parent.iterdir()) == []


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size: like a full disk, this takes the piece of a write that fits."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_in_mid_chunk_is_said_and_the_upload_goes_on_later(
    port: OpenPort, write: Write, committed: Callable[[], int]
) -> None:
    # Within the last chunk: its piece must not pass for all of it.
    with files_of_at_most(150_000):
        assert refusal(lambda: write(UPDATE[:HALF], UPDATE[HALF:])) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "disk_full",
        )
    assert committed() == 150_000
    assert write(UPDATE[150_000:], offset=150_000).committed_bytes == len(UPDATE)
    assert port.upload_of("north", blob_of(UPDATE).sha256).read_bytes() == UPDATE


def test_reading_what_is_not_on_offer_or_beyond_its_end_is_refused(
    port: OpenPort, exchange: AdapterExchangeServiceStub
) -> None:
    port.ask_for_update("north")
    (whole,) = (port.exchange.folder / "whole").iterdir()
    sha256, content = bytes.fromhex(whole.name), whole.read_bytes()

    def read(sha256: bytes, offset: int) -> bytes:
        request = exchange_pb2.ReadRequest(sha256=sha256, offset=offset)
        return b"".join(response.data for response in exchange.Read(request, metadata=NORTH))

    assert read(sha256, 0) == content
    assert read(sha256, 10) == content[10:]
    assert read(sha256, len(content)) == b""
    for offset in (len(content) + 1, 2**64 - 1):
        assert refusal(lambda at=offset: read(sha256, at)) == (grpc.StatusCode.OUT_OF_RANGE, "offset")  # type: ignore[misc]
    for unknown in (b"", b"\0" * 32, sha256[:31], b"../ticket.key"):
        assert refusal(lambda name=unknown: read(name, 0)) == (grpc.StatusCode.NOT_FOUND, "not_on_offer")  # type: ignore[misc]
