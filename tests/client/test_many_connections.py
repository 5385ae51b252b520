"""Case 36: connections that come and go leave nothing behind, at either end."""

import gc
import socket
import struct
import sys
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import DEADLINE_SECONDS, Conversation, OpenPort, enrolled, open_port, wait_until

from fedlora.common.channels import Credentials, open_channel
from fedlora.server.identity.authority import Authority

MEGABYTE = 1 << 20


def connect(port: OpenPort, credentials: Credentials, way: int) -> None:
    """Make a connection, and end it in one of several ways."""
    if way == 0:
        # In the middle of the greeting, with a reset.
        with socket.create_connection(("127.0.0.1", port.number), DEADLINE_SECONDS) as raw:
            raw.sendall(b"\x16\x03\x01")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return
    with open_channel(port.address, credentials) as channel, Conversation(channel) as conversation:
        if way > 1:
            conversation.hear("welcome")


@pytest.mark.parametrize("num_connects", [100, pytest.param(1_000, marks=pytest.mark.slow)])
def test_case_36_connects_and_disconnects_leak_nothing(tmp_path: Path, num_connects: int) -> None:
    authority, process = Authority.open(tmp_path / "identity", datetime.now(UTC)), psutil.Process()
    credentials = enrolled(authority, "north")
    with open_port(tmp_path, authority) as port:
        for number in range(30):
            connect(port, credentials, number % 4)
        wait_until(lambda: port.states["north"] == "away")
        gc.collect()
        descriptors, threads, memory = process.num_fds(), process.num_threads(), process.memory_info().rss
        for number in range(num_connects):
            connect(port, credentials, number % 4)
        wait_until(lambda: port.states["north"] == "away")
        # gRPC lets go of a connection's descriptor, and of idle threads, a moment after its end.
        wait_until(lambda: process.num_fds() <= descriptors + 2)
        wait_until(lambda: process.num_threads() <= threads + 2)
        gc.collect()
        grown = process.memory_info().rss - memory
    # Both ends are in this process. Heaps settle for a while: half a megabyte per hundred is no leak of connections,
    # of which each has some hundred kilobytes.
    assert grown < 8 * MEGABYTE + num_connects * 5_000
