"""Case 18: an upload that goes on for ever, each chunk in its time, is over when its round is."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc

sys.path.append(str(Path(__file__).parent))

from open_port import blob_of, exchange_of, named, open_port, refusal, wait_until

from fedlora.v1 import exchange_pb2

NORTH = named("north")
CHUNK = bytes(16 << 10)
SECONDS_A_CHUNK = 0.02


def test_case_18_an_upload_that_trickles_ends_with_its_round_and_another_may_come(tmp_path: Path) -> None:
    content = CHUNK * 4_000
    # On and on: at this rate it would be more than a minute.
    with open_port(tmp_path, chunk_seconds=1.0) as port, exchange_of(port.address) as exchange:
        ticket, is_over = port.ask_for_update("north", max_bytes=2 * len(content)), threading.Event()

        def trickle() -> Iterator[exchange_pb2.WriteRequest]:
            yield exchange_pb2.WriteRequest(ticket=ticket, blob=blob_of(content), data=CHUNK)
            while not is_over.wait(SECONDS_A_CHUNK):
                yield exchange_pb2.WriteRequest(data=CHUNK)

        answer = exchange.Write.future(trickle(), metadata=NORTH)
        wait_until(lambda: port.grid.traffic().bytes_up > 5 * len(CHUNK))
        port.grid.withdraw(port.asked)
        assert refusal(lambda: answer.result(timeout=10)) == (grpc.StatusCode.FAILED_PRECONDITION, "not_expected")
        is_over.set()
        next_ticket = port.ask_for_update("north", round=2)
        request = exchange_pb2.WriteRequest(ticket=next_ticket, blob=blob_of(CHUNK), data=CHUNK)
        assert exchange.Write(iter([request]), metadata=NORTH).committed_bytes == len(CHUNK)
