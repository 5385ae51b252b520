"""Adapters up and down over a real server: links that are slow, that stall and break, damage, and full disks."""

import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from relay import Conditions, Relay

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import OpenPort, blob_of, exchange_of, named, open_port, refusal, wait_until

from fedlora.client.site.transfer import download, upload
from fedlora.common.errors import RunError, StoreError
from fedlora.v1 import messages_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

NORTH = named("north")
MEGABYTE = 1_000_000


@dataclass
class Transfer:
    """A file on both sides: what the server offers is what the site sends."""

    port: OpenPort
    content: bytes
    blob: messages_pb2.Blob
    ticket: bytes
    source: Path
    target: Path

    @classmethod
    def of(cls, port: OpenPort, folder: Path, size: int) -> "Transfer":
        content = random.Random(size).randbytes(size)
        blob, ticket = blob_of(content), port.ask_for_update("north")
        (port.exchange.folder / "whole" / blob.sha256.hex()).write_bytes(content)
        (folder / "source").write_bytes(content)
        return cls(port, content, blob, ticket, folder / "source", folder / "target")

    @property
    def sent(self) -> Path:
        """Where the upload is at the server once it is whole."""
        return self.port.upload_of("north", self.blob.sha256)

    @property
    def part(self) -> Path:
        """Where the download is at the site before."""
        return self.target.with_name("target.part")

    def down(self, exchange: AdapterExchangeServiceStub) -> int:
        return download(exchange, self.blob, self.target, metadata=NORTH)

    def up(self, exchange: AdapterExchangeServiceStub) -> int:
        return upload(exchange, self.ticket, self.source, self.blob, metadata=NORTH)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


@pytest.fixture
def transfer(port: OpenPort, tmp_path: Path) -> Transfer:
    return Transfer.of(port, tmp_path, 2 * MEGABYTE)


@pytest.fixture
def exchange(port: OpenPort) -> Iterator[AdapterExchangeServiceStub]:
    with exchange_of(port.address) as exchange:
        yield exchange


def until_done(address: str, move: Callable[[AdapterExchangeServiceStub], int]) -> int:
    """Try a transfer again, as a site does, until it is through; return how often it broke off."""
    end, num_broken = time.monotonic() + 60, 0
    while True:
        with exchange_of(address) as exchange:
            try:
                move(exchange)
            except grpc.RpcError as error:
                # The server may notice later than we do that the former upload is dead.
                if "one_upload_at_a_time" not in str(error.details()):
                    num_broken += 1
                assert time.monotonic() < end
                time.sleep(0.02)
            else:
                return num_broken


def test_what_is_there_already_does_not_move_again(transfer: Transfer, exchange: AdapterExchangeServiceStub) -> None:
    size = len(transfer.content)
    assert transfer.up(exchange) == size == transfer.down(exchange)
    assert transfer.target.read_bytes() == transfer.content == transfer.sent.read_bytes()
    assert not transfer.part.exists()
    assert transfer.up(exchange) == 0
    transfer.part.write_bytes(transfer.content)
    assert transfer.down(exchange) == 0


@pytest.mark.parametrize("direction", ["up", "down"])
def test_case_24_a_transfer_that_is_cut_in_the_middle_goes_on_from_there(transfer: Transfer, direction: str) -> None:
    size = len(transfer.content)
    # At the full speed of loopback a reset would take what the reader has not come to yet.
    half = Conditions(bits_per_second=40e6, max_resets=1, **{f"reset_after_bytes_{direction}": size // 2})
    with Relay(("127.0.0.1", transfer.port.number), conditions=half) as relay:
        assert until_done(relay.address, getattr(transfer, direction)) == 1
        moved = relay.bytes_up if direction == "up" else relay.bytes_down
    assert (transfer.sent if direction == "up" else transfer.target).read_bytes() == transfer.content
    # From the beginning it would be half as much again; as it is, the chunk that broke is sent twice.
    assert moved < 1.3 * size


def test_case_24_a_link_that_breaks_every_megabyte_is_enough(transfer: Transfer) -> None:
    limits = Conditions(reset_after_bytes_up=800_000, reset_after_bytes_down=800_000)
    with Relay(("127.0.0.1", transfer.port.number), conditions=limits) as relay:
        assert until_done(relay.address, transfer.up) >= 2
        assert until_done(relay.address, transfer.down) >= 2
    assert transfer.target.read_bytes() == transfer.content == transfer.sent.read_bytes()


def test_case_25_over_a_slow_and_faulty_link_hardly_more_moves_than_is_needed(port: OpenPort, tmp_path: Path) -> None:
    transfer = Transfer.of(port, tmp_path, 8 * MEGABYTE)
    size = len(transfer.content)
    conditions = Conditions(
        bits_per_second=10e6,
        delay_seconds=0.02,
        reset_after_bytes_up=4_500_000,
        reset_after_bytes_down=5 * MEGABYTE,
        max_resets=2,
    )
    with Relay(("127.0.0.1", port.number), conditions=conditions) as relay, ThreadPoolExecutor(2) as pool:
        both = [pool.submit(until_done, relay.address, move) for move in (transfer.up, transfer.down)]
        for passed in (MEGABYTE, 4 * MEGABYTE):
            wait_until(lambda least=passed: relay.bytes_up > least and relay.bytes_down > least)  # type: ignore[misc]
            relay.stall(0.3)
        assert [moving.result() for moving in both] == [1, 1]
        assert relay.bytes_up / size < 1.05
        assert relay.bytes_down / size < 1.05
    assert transfer.target.read_bytes() == transfer.content == transfer.sent.read_bytes()


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_case_16_a_flipped_bit_in_what_was_there_before_is_found_and_all_moves_again(
    transfer: Transfer, exchange: AdapterExchangeServiceStub
) -> None:
    size = len(transfer.content)
    half = flipped(transfer.content, 5)[:MEGABYTE]
    transfer.part.write_bytes(half)
    assert transfer.down(exchange) == 2 * size - len(half)
    transfer.sent.with_name(f"{transfer.sent.name}.part").write_bytes(half)
    assert transfer.up(exchange) == size
    assert transfer.target.read_bytes() == transfer.content == transfer.sent.read_bytes()


def test_case_16_a_file_that_is_not_what_its_digest_says_is_given_up_after_three_times(
    transfer: Transfer, exchange: AdapterExchangeServiceStub
) -> None:
    transfer.source.write_bytes(flipped(transfer.content, 5))
    with pytest.raises(RunError, match="arrived damaged 3 times"):
        transfer.up(exchange)
    offered = transfer.port.exchange.find(transfer.blob.sha256.hex())
    assert offered is not None
    for wrong in (flipped(transfer.content, 5), transfer.content + b"and more"):
        offered.write_bytes(wrong)
        with pytest.raises(RunError, match="came damaged 3 times"):
            transfer.down(exchange)
    assert not transfer.target.exists()
    assert not transfer.part.exists()


def test_a_server_that_refuses_is_heard_at_once(transfer: Transfer, exchange: AdapterExchangeServiceStub) -> None:
    transfer.port.grid.withdraw(transfer.port.asked)
    assert refusal(lambda: transfer.up(exchange)) == (grpc.StatusCode.FAILED_PRECONDITION, "not_expected")
    transfer.blob.sha256 = bytes(32)
    assert refusal(lambda: transfer.down(exchange)) == (grpc.StatusCode.NOT_FOUND, "not_on_offer")


def test_a_full_disk_is_said_before_anything_is_written(
    transfer: Transfer, exchange: AdapterExchangeServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=64 << 20))
    with pytest.raises(StoreError, match=r"2,000,000 bytes do not fit; free some space"):
        transfer.down(exchange)
    assert not transfer.part.exists()


def test_a_disk_that_fills_up_meanwhile_is_said_and_the_download_goes_on_later(
    transfer: Transfer, exchange: AdapterExchangeServiceStub
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Within the last chunk: a full disk takes the piece that fits, and says nothing.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(transfer.content) - 10, before[1]))
    try:
        with pytest.raises(StoreError, match="free some space"):
            transfer.down(exchange)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert transfer.part.stat().st_size == len(transfer.content) - 10
    assert transfer.down(exchange) == 10
    assert transfer.target.read_bytes() == transfer.content
