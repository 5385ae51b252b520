"""Case 16, at the sender: what a line damages or cuts is sent again, by the client itself, until it is whole."""

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import OpenPort, blob_of, exchange_of, named, open_port

from fedlora.client.site.transfer import upload
from fedlora.common.channels import CHUNK_BYTES
from fedlora.v1 import exchange_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

NORTH = named("north")
CONTENT = random.Random(0).randbytes(3 * CHUNK_BYTES + 1_000)

MOST_UPLOADS = 6

Chunks = Iterator[exchange_pb2.WriteRequest]


class BadLine:
    """The exchange over a line that does something to the first uploads; what it did is counted."""

    def __init__(self, exchange: AdapterExchangeServiceStub, spoil: Callable[[Chunks], Chunks], *, times: int) -> None:
        self._exchange = exchange
        self._spoil = spoil
        self._times = times
        self.num_uploads = 0
        self.Read, self.QueryWriteStatus = exchange.Read, exchange.QueryWriteStatus

    def Write(self, requests: Chunks, **options: Any) -> exchange_pb2.WriteResponse:
        self.num_uploads += 1
        is_spoiled = self.num_uploads <= self._times
        response: exchange_pb2.WriteResponse = self._exchange.Write(
            self._spoil(requests) if is_spoiled else requests, **options
        )
        return response


def flip_a_bit(requests: Chunks) -> Chunks:
    for number, request in enumerate(requests):
        if number == 1:
            request.data = bytes([request.data[0] ^ 1]) + request.data[1:]
        yield request


def cut_a_chunk(requests: Chunks) -> Chunks:
    for number, request in enumerate(requests):
        if number == 2:
            request.data = request.data[:-100]
        yield request


def end_early(requests: Chunks) -> Chunks:
    yield next(requests)
    yield next(requests)


def is_through(move: Callable[[], int]) -> bool:
    """Return whether an upload is done; a site tries it again where the server ended it."""
    try:
        move()
    except grpc.RpcError:
        return False
    return True


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


@pytest.mark.parametrize("spoil", [flip_a_bit, cut_a_chunk, end_early])
def test_case_16_a_client_sends_again_what_was_damaged_or_cut_on_the_way(
    port: OpenPort, tmp_path: Path, spoil: Callable[[Chunks], Chunks]
) -> None:
    (tmp_path / "update").write_bytes(CONTENT)
    ticket, blob = port.ask_for_update("north"), blob_of(CONTENT)
    with exchange_of(port.address) as exchange:
        line: Any = BadLine(exchange, spoil, times=2)
        while not is_through(lambda: upload(line, ticket, tmp_path / "update", blob, metadata=NORTH)):
            assert line.num_uploads < MOST_UPLOADS
        assert line.num_uploads > 1
    assert port.upload_of("north", blob.sha256).read_bytes() == CONTENT
