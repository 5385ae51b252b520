"""The relay and the CONNECT proxy, with plain sockets at both ends."""

import http.client
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

sys.path.append(str(Path(__file__).parent))

from connect_proxy import ConnectProxy
from relay import Conditions, Relay

DEADLINE_SECONDS = 10.0
QUIET_SECONDS = 0.3
LOOPBACKS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])

Ends = tuple[socket.socket, socket.socket]


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        listener.settimeout(DEADLINE_SECONDS)
        yield listener


@contextmanager
def ends_of(relay: Relay, listener: socket.socket) -> Iterator[Ends]:
    """Give the client's and the target's socket of a connection through the relay."""
    with socket.create_connection((relay.host, relay.port), DEADLINE_SECONDS) as client, listener.accept()[0] as target:
        target.settimeout(DEADLINE_SECONDS)
        yield client, target


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with listening() as listener:
        yield listener


@pytest.fixture
def relay(listener: socket.socket) -> Iterator[Relay]:
    with Relay(listener.getsockname()[:2]) as relay:
        yield relay


@pytest.fixture
def ends(relay: Relay, listener: socket.socket) -> Iterator[Ends]:
    with ends_of(relay, listener) as ends:
        yield ends


def read(end: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes and (chunk := end.recv(num_bytes - len(received))):
        received += chunk
    return bytes(received)


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_nothing_comes(end: socket.socket) -> None:
    end.settimeout(QUIET_SECONDS)
    with pytest.raises(TimeoutError):
        end.recv(1)
    end.settimeout(DEADLINE_SECONDS)


def assert_reset(end: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        end.recv(1)


@contextmanager
def sending(end: socket.socket, content: bytes) -> Iterator[None]:
    """Send all of the content meanwhile, from another thread."""
    thread = threading.Thread(target=end.sendall, args=(content,))
    thread.start()
    yield
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


@LOOPBACKS
def test_relay_passes_both_ways_and_counts_every_byte(host: str) -> None:
    up, down = bytes(range(256)) * 12_345, b"answer" * 234_567
    with listening(host) as listener, Relay(listener.getsockname()[:2], host=host) as relay:
        with ends_of(relay, listener) as (client, target), sending(client, up), sending(target, down):
            assert read(target, len(up)) == up
            assert read(client, len(down)) == down
            assert (relay.bytes_up, relay.bytes_down) == (len(up), len(down))
            assert relay.num_open == 1
        wait_until(lambda: relay.num_open == 0)
        assert relay.num_connections == 1
    assert (relay.bytes_up, relay.bytes_down) == (len(up), len(down))


def test_relay_passes_on_the_end_of_one_direction_while_the_other_goes_on(ends: Ends) -> None:
    client, target = ends
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert read(target, 100) == b"question"
    target.sendall(b"answer")
    assert read(client, 6) == b"answer"


def test_relay_passes_on_a_reset(ends: Ends) -> None:
    client, target = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert_reset(target)


def test_relay_resets_a_client_whose_target_refuses() -> None:
    with listening() as listener:
        nobody: tuple[str, int] = listener.getsockname()[:2]
    with Relay(nobody) as relay:
        # The reset may be there before the connection is known to be.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection((relay.host, relay.port), DEADLINE_SECONDS) as client,
        ):
            client.recv(1)
        wait_until(lambda: relay.num_open == 0)


@pytest.mark.parametrize("upwards", [True, False])
def test_relay_keeps_the_rate(relay: Relay, ends: Ends, upwards: bool) -> None:
    source, sink = ends if upwards else ends[::-1]
    relay.conditions = Conditions(bits_per_second=10e6)
    num_bytes = 1_875_000  # 1.5 s at 10 Mbit/s
    with sending(source, bytes(num_bytes)):
        begin = time.perf_counter()
        assert len(read(sink, num_bytes)) == num_bytes
        seconds = time.perf_counter() - begin
    assert num_bytes * 8 / seconds == pytest.approx(10e6, rel=0.15)


def test_connections_share_the_rate(relay: Relay, listener: socket.socket, ends: Ends) -> None:
    relay.conditions = Conditions(bits_per_second=10e6)
    content = bytes(312_500)  # two of them: 0.5 s at 10 Mbit/s
    with ends_of(relay, listener) as others, sending(ends[0], content), sending(others[0], content):
        begin = time.perf_counter()
        assert len(read(ends[1], len(content)) + read(others[1], len(content))) == 2 * len(content)
        assert time.perf_counter() - begin == pytest.approx(0.5, rel=0.3)


def test_relay_delays_each_direction_without_lowering_the_rate(relay: Relay, ends: Ends) -> None:
    client, target = ends
    relay.conditions = Conditions(delay_seconds=0.2)
    begin = time.perf_counter()
    with sending(client, bytes(5_000_000)):
        assert len(read(target, 5_000_000)) == 5_000_000
    target.sendall(b"answer")
    assert read(client, 6) == b"answer"
    assert 0.4 <= time.perf_counter() - begin < 5.0  # One chunk per delay would take 15 s.


def test_stalled_relay_moves_nothing_for_a_while(relay: Relay, ends: Ends) -> None:
    client, target = ends
    begin = time.perf_counter()
    relay.stall(1.0)
    client.sendall(b"late")
    client.shutdown(socket.SHUT_WR)
    assert_nothing_comes(target)
    assert relay.bytes_up == 0
    assert read(target, 100) == b"late"
    assert time.perf_counter() - begin >= 1.0


def test_stall_stops_what_is_being_sent(relay: Relay, ends: Ends) -> None:
    client, target = ends
    with sending(client, bytes(30_000_000)):
        read(target, 1_000_000)
        relay.swallow()
        passed = relay.bytes_up
        assert len(read(target, passed - 1_000_000)) == passed - 1_000_000
        assert_nothing_comes(target)
        relay.mend()
        assert len(read(target, 30_000_000 - passed)) == 30_000_000 - passed


def test_swallowing_relay_is_half_open_until_it_is_mended(relay: Relay, listener: socket.socket, ends: Ends) -> None:
    client, target = ends
    relay.stall(0.1)
    relay.swallow()
    client.sendall(b"kept")
    target.shutdown(socket.SHUT_WR)
    with ends_of(relay, listener) as (later_client, later_target):
        later_client.sendall(b"kept too")
        assert_nothing_comes(client)
        assert_nothing_comes(later_target)
        assert (relay.num_open, relay.bytes_up) == (2, 0)
        relay.mend()
        assert (read(target, 4), read(later_target, 8)) == (b"kept", b"kept too")
        assert client.recv(1) == b""


def test_reset_all_is_a_reset_at_both_ends(relay: Relay, listener: socket.socket, ends: Ends) -> None:
    with ends_of(relay, listener) as others:
        relay.reset_all()
        assert relay.num_open == 0
        for end in (*ends, *others):
            assert_reset(end)
    with ends_of(relay, listener) as (client, target):
        client.sendall(b"works again")
        assert read(target, 11) == b"works again"


@pytest.mark.parametrize("upwards", [True, False])
def test_connection_is_reset_at_both_ends_after_so_many_bytes(relay: Relay, ends: Ends, upwards: bool) -> None:
    source, sink = ends if upwards else ends[::-1]
    field = "reset_after_bytes_up" if upwards else "reset_after_bytes_down"
    relay.conditions = Conditions(**{field: 1000})
    sink.sendall(bytes(5000))
    assert len(read(source, 5000)) == 5000
    source.sendall(bytes(999))
    assert len(read(sink, 999)) == 999
    source.sendall(bytes(500))
    assert read(sink, 1) == b"\0"
    assert_reset(sink)
    assert_reset(source)
    assert (relay.bytes_up, relay.bytes_down) == ((1000, 5000) if upwards else (5000, 1000))


def test_only_so_many_connections_are_reset(relay: Relay, listener: socket.socket, ends: Ends) -> None:
    relay.conditions = Conditions(reset_after_bytes_up=0, max_resets=1)
    ends[0].sendall(b"lost")
    for end in ends:
        assert_reset(end)
    with ends_of(relay, listener) as (client, target):
        client.sendall(b"found")
        assert read(target, 5) == b"found"


@LOOPBACKS
def test_cut_relay_refuses_connections_until_it_is_mended(host: str) -> None:
    with (
        listening(host) as listener,
        Relay(listener.getsockname()[:2], host=host) as relay,
        ends_of(relay, listener) as (client, target),
    ):
        for _ in range(3):
            relay.cut()
            relay.cut()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((relay.host, relay.port), DEADLINE_SECONDS)
            client.sendall(b"open")
            assert read(target, 4) == b"open"
            relay.mend()
            relay.mend()
            with ends_of(relay, listener) as (new_client, new_target):
                new_target.sendall(b"new")
                assert read(new_client, 3) == b"new"


def test_closed_relay_leaves_no_thread_and_no_socket(listener: socket.socket) -> None:
    process = psutil.Process()
    threads, num_files = set(threading.enumerate()), process.num_fds()
    relay = Relay(listener.getsockname()[:2], conditions=Conditions(delay_seconds=60.0))
    with ends_of(relay, listener) as (client, _target):
        client.sendall(bytes(100_000))
        relay.stall(60.0)
        relay.close()
        relay.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((relay.host, relay.port), DEADLINE_SECONDS)
    assert set(threading.enumerate()) <= threads
    assert process.num_fds() <= num_files
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1 port \d+ is closed"):
        relay.mend()


def test_relay_listens_on_loopbacks_only() -> None:
    with pytest.raises(ValueError, match=r"'0\.0\.0\.0', expected a loopback"):
        Relay(("127.0.0.1", 1), host="0.0.0.0")


@contextmanager
def tunnel(
    proxy: ConnectProxy, target: str, port: int, headers: dict[str, str] | None = None
) -> Iterator[http.client.HTTPConnection]:
    """Give a connection that asks the proxy for a tunnel to the target; it is not yet made."""
    connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=DEADLINE_SECONDS)
    connection.set_tunnel(target, port, headers)
    try:
        yield connection
    finally:
        connection.close()


@LOOPBACKS
def test_proxy_tunnels_and_counts_every_byte(host: str) -> None:
    with listening(host) as listener, ConnectProxy(host=host) as proxy:
        port: int = listener.getsockname()[1]
        with tunnel(proxy, "localhost", port) as connection:
            connection.request("PUT", "/adapter", bytes(3_000_000))
            with listener.accept()[0] as target:
                target.settimeout(DEADLINE_SECONDS)
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += read(target, 1)
                assert head.startswith(b"PUT /adapter HTTP/1.1\r\n")
                assert len(read(target, 3_000_000)) == 3_000_000
                answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone"
                target.sendall(answer)
                assert connection.getresponse().read() == b"done"
                assert (proxy.bytes_up, proxy.bytes_down) == (len(head) + 3_000_000, len(answer))
                assert (proxy.num_tunnels, proxy.num_open) == (1, 1)
        wait_until(lambda: proxy.num_open == 0)
        assert proxy.targets == (f"localhost:{port}",)


def test_proxy_passes_on_what_came_with_the_request(listener: socket.socket) -> None:
    port: int = listener.getsockname()[1]
    with ConnectProxy() as proxy, socket.create_connection((proxy.host, proxy.port), DEADLINE_SECONDS) as client:
        client.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nearly".encode())
        with listener.accept()[0] as target:
            target.settimeout(DEADLINE_SECONDS)
            assert read(target, 5) == b"early"
            assert proxy.bytes_up == 5


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET http://127.0.0.1/ HTTP/1.1\r\nHost: 127.0.0.1", 405),
        ("POST / HTTP/1.1\r\nContent-Length: 100000", 405),
        ("CONNECT 127.0.0.1 HTTP/1.1", 400),
        ("CONNECT 127.0.0.1:65536 HTTP/1.1", 400),
        ("SSH-2.0-OpenSSH_9.6", 400),
        ("CONNECT 192.0.2.1:80 HTTP/1.1", 502),
        ("CONNECT somewhere.invalid:80 HTTP/1.1", 502),
    ],
)
def test_proxy_refuses_all_but_a_tunnel_to_a_loopback(request_text: str, status: int) -> None:
    with ConnectProxy() as proxy, socket.create_connection((proxy.host, proxy.port), DEADLINE_SECONDS) as client:
        client.sendall(request_text.encode() + b"\r\n\r\n" + bytes(100_000))
        answer = read(client, 10_000).decode()
        client.close()
        wait_until(lambda: proxy.num_open == 0)
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert ("Allow: CONNECT" in answer) == (status == 405)
    assert (proxy.num_tunnels, proxy.bytes_up, proxy.bytes_down) == (0, 0, 0)


def test_proxy_answers_that_the_target_does_not_listen() -> None:
    with listening() as listener:
        port: int = listener.getsockname()[1]
    with ConnectProxy() as proxy, tunnel(proxy, "127.0.0.1", port) as connection:
        with pytest.raises(OSError, match="502 Bad Gateway"):
            connection.connect()
        assert (proxy.num_tunnels, proxy.targets) == (0, (f"127.0.0.1:{port}",))


def test_proxy_with_credentials_wants_exactly_these(listener: socket.socket) -> None:
    port: int = listener.getsockname()[1]
    right, wrong = "Basic c2l0ZTpwOnMvcw==", "Basic c2l0ZTpwOnM="
    with ConnectProxy(credentials=("site", "p:s/s")) as proxy:
        assert proxy.url == f"http://site:p%3As%2Fs@127.0.0.1:{proxy.port}"
        for headers in ({}, {"Proxy-Authorization": wrong}, {"Authorization": right}):
            with (
                tunnel(proxy, "127.0.0.1", port, headers) as connection,
                pytest.raises(OSError, match="407 Proxy Auth"),
            ):
                connection.connect()
        with tunnel(proxy, "127.0.0.1", port, {"proxy-authorization": right}) as connection:
            connection.connect()
            assert proxy.num_tunnels == 1


def test_proxy_resets_its_tunnels_at_both_ends(listener: socket.socket) -> None:
    with ConnectProxy() as proxy, tunnel(proxy, "127.0.0.1", listener.getsockname()[1]) as connection:
        connection.connect()
        with listener.accept()[0] as target:
            target.settimeout(DEADLINE_SECONDS)
            proxy.reset_all()
            assert_reset(target)
            assert_reset(connection.sock)


def test_closed_proxy_leaves_no_thread_and_no_socket(listener: socket.socket) -> None:
    process = psutil.Process()
    threads, num_files = set(threading.enumerate()), process.num_fds()
    proxy = ConnectProxy()
    with (
        tunnel(proxy, "127.0.0.1", listener.getsockname()[1]) as connection,
        socket.create_connection((proxy.host, proxy.port)) as silent,
    ):
        connection.connect()
        proxy.close()
        proxy.close()
        assert silent.recv(1) == connection.sock.recv(1) == b""
    assert set(threading.enumerate()) <= threads
    assert process.num_fds() <= num_files
