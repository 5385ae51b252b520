"""What strangers and hostile sites load on a port is bounded: ids, unread answers, calls, connections."""

import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import Conversation, enrolled, named, open_port, wait_until

from fedlora.common import open_files
from fedlora.common.channels import open_channel
from fedlora.common.errors import StoreError
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.calls import MOST_OF_A_SITE
from fedlora.server.sites.grpc.doorkeeper import MOST_OF_AN_ADDRESS, peer_text
from fedlora.server.sites.grpc.outgoing import MOST_UNREAD
from fedlora.v1 import messages_pb2, registry_pb2, session_pb2
from fedlora.v1.registry_pb2_grpc import RegistryServiceStub

READY = session_pb2.Readiness(description=messages_pb2.SiteDescription(num_examples=1, lora_rank=2))


def answer(request_id: str) -> session_pb2.Answer:
    return session_pb2.Answer(request_id=request_id, failure=messages_pb2.Failure(code="data"))


def narrow_channel(address: str) -> grpc.Channel:
    """Return a channel that takes no more of what is sent than it must."""
    options = [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 1 << 16),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
    ]
    return grpc.insecure_channel(address, options)


def left_when_it_stalls(conversation: Conversation) -> int:
    """Return how much the server leaves untaken of what a site says: once nothing has moved for a second."""
    left, since = conversation.num_unsent, time.monotonic()
    while left and time.monotonic() - since < 1:
        time.sleep(0.01)
        if conversation.num_unsent != left:
            left, since = conversation.num_unsent, time.monotonic()
    return left


# -- a site that is let in


def test_an_answer_with_an_id_of_megabytes_ends_its_connection_and_no_other(tmp_path: Path) -> None:
    with (
        open_port(tmp_path) as port,
        narrow_channel(port.address) as channel,
        Conversation(channel, named("hostile")) as hostile,
        Conversation(channel, named("north")) as honest,
    ):
        hostile.hear("welcome")
        honest.hear("welcome")
        for _ in range(10):
            hostile.say(answer=answer("x" * (8 << 20)))
        assert hostile.hear_end()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        honest.say(answer=answer("unknown"))
        assert honest.hear("acknowledgement").acknowledgement.request_id == "unknown"


def test_an_answer_with_an_id_longer_than_any_of_ours_is_not_answered_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        open_port(tmp_path) as port,
        narrow_channel(port.address) as channel,
        Conversation(channel, named("hostile")) as hostile,
    ):
        hostile.hear("welcome")
        for _ in range(50):
            hostile.say(answer=answer("x" * 65))
        hostile.say(answer=answer("x" * 64))
        assert hostile.hear("acknowledgement").acknowledgement.request_id == "x" * 64
    assert caplog.text.count("no request of ours") == 1


def test_of_a_site_that_reads_no_answers_no_more_is_read(tmp_path: Path) -> None:
    with (
        open_port(tmp_path) as port,
        narrow_channel(port.address) as channel,
        Conversation(channel, named("hostile")) as hostile,
    ):
        for number in range(6_000):
            hostile.say(answer=answer(f"{number:060}"))
        assert left_when_it_stalls(hostile) > 3_000
        # And goes on when it does.
        hostile.hear("welcome")
        for number in range(6_000):
            assert int(hostile.hear("acknowledgement").acknowledgement.request_id) == number


def test_what_a_site_leaves_unread_ends_its_connection(tmp_path: Path) -> None:
    with (
        open_port(tmp_path) as port,
        narrow_channel(port.address) as channel,
        Conversation(channel, named("deaf")) as deaf,
    ):
        deaf.hear("welcome")
        deaf.say(readiness=READY)
        wait_until(lambda: port.states.get("deaf") == "ready")
        # Each is a request and its cancellation; what fits into the connection's window goes first.
        for number in range(8 * MOST_UNREAD):
            port.ask_for_update("deaf", round=number)
            port.grid.withdraw(port.asked[-1:])
        assert deaf.hear_end() == (grpc.StatusCode.ABORTED, "unread")


def test_a_site_that_is_ready_all_the_time_is_heard_now_and_then(tmp_path: Path) -> None:
    with (
        open_port(tmp_path) as port,
        narrow_channel(port.address) as channel,
        Conversation(channel, named("restless")) as restless,
    ):
        restless.hear("welcome")
        # The server takes a window of them, and then no more than one a second.
        for number in range(3_000):
            restless.say(readiness=session_pb2.Readiness(reason=f"{'ab'[number % 2]}{'x' * 500}"))
        assert left_when_it_stalls(restless) > 2_000


def test_a_site_has_so_many_calls_at_a_time_and_no_other_suffers(tmp_path: Path) -> None:
    with (
        open_port(tmp_path) as port,
        open_channel(port.address, None) as channel,
        open_channel(port.address, None) as another,
    ):
        registry = RegistryServiceStub(channel)
        # More than it may: where a call of the loop below comes in between, one of these is refused in its place.
        held = [
            registry.WatchAdapters(registry_pb2.WatchAdaptersRequest(), metadata=named("greedy"))
            for _ in range(MOST_OF_A_SITE + 8)
        ]

        def outcome() -> str:
            try:
                registry.ListAdapters(registry_pb2.ListAdaptersRequest(), metadata=named("greedy"))
            except grpc.RpcError as error:
                return str(error.details())
            return ""

        wait_until(lambda: outcome() == "too_many_calls")
        with Conversation(another, named("north")) as honest:
            honest.hear("welcome")
        for call in held:
            call.cancel()
        wait_until(lambda: outcome() == "")


# -- strangers


@contextmanager
def strangers(address: str, number: int) -> Iterator[list[socket.socket]]:
    """Yield idle connections to a port."""
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(number)]
        for connection in made:
            connection.setblocking(False)
        yield made


def num_open(connections: list[socket.socket]) -> int:
    def is_open(connection: socket.socket) -> bool:
        try:
            return connection.recv(1 << 16) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    return sum(map(is_open, connections))


def test_of_one_address_so_many_connections_wait_and_the_sites_keep_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority.open(tmp_path / "identity", datetime.now(UTC))
    with (
        open_port(tmp_path, authority) as port,
        open_channel(port.address, enrolled(authority, "north")) as channel,
        Conversation(channel) as honest,
    ):
        honest.hear("welcome")
        with strangers(port.address, 3 * MOST_OF_AN_ADDRESS) as idle:
            wait_until(lambda: num_open(idle) <= MOST_OF_AN_ADDRESS)
            with open_channel(port.address, enrolled(authority, "south")) as another, Conversation(another) as new:
                new.hear("welcome")
        honest.say(answer=answer("unknown"))
        honest.hear("acknowledgement")
    assert "connections from 127.0.0.1 were closed: on more than 64 at a time no site has made a call" in caplog.text


def test_who_shows_no_certificate_in_time_is_shown_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.server.sites.grpc.port._HANDSHAKE_MS", 300)
    authority = Authority.open(tmp_path / "identity", datetime.now(UTC))
    with open_port(tmp_path, authority) as port, strangers(port.address, 3) as idle:
        wait_until(lambda: num_open(idle) == 0)


def test_connections_are_called_as_grpc_calls_them() -> None:
    assert peer_text("127.0.0.1", 80) == peer_text("::ffff:127.0.0.1", 80) == "ipv4:127.0.0.1:80"
    assert peer_text("::1", 80) == "ipv6:%5B::1%5D:80"


# -- want of descriptors


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_free = os.dup(0)
    os.close(next_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_no_descriptor_is_left_it_is_said_and_no_file_is_blamed(tmp_path: Path) -> None:
    from fedlora.common.files import write_file
    from fedlora.server.identity.site_records import SiteRecords

    authority = Authority.open(tmp_path / "identity", datetime.now(UTC))
    enrolled(authority, "north")
    records = SiteRecords(tmp_path / "identity" / "sites")
    calls: list[Callable[[], object]] = [
        lambda: authority.server_pair(datetime.now(UTC)),
        lambda: Authority.open(tmp_path / "identity", datetime.now(UTC)),
        lambda: records.get("north"),
        lambda: write_file(tmp_path / "round.json", "{}"),
    ]
    said: list[str] = []
    with no_descriptor_left():
        for call in calls:
            try:
                call()
            except StoreError as error:
                said.append(str(error))
    assert len(said) == len(calls)
    assert all("as many files and connections open as it may" in line for line in said), said
    assert not any(str(tmp_path) in line for line in said)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert open_files.raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert open_files.limit() in (hard, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
