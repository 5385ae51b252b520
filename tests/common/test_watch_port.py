"""The HTTP port on which a process is watched: what it answers, and what it does not put up with."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from fedlora.common.errors import ConfigError
from fedlora.common.watch_port import WatchPort

MOST_CONNECTIONS = 16


class Broken(Collector):
    """Metrics that cannot be had."""

    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("a bug")


def asked(number: int, request: bytes, *, host: str = "127.0.0.1") -> bytes:
    """Return all that is answered to some bytes."""
    with socket.create_connection((host, number), timeout=30) as connection:
        connection.sendall(request)
        parts = iter(lambda: connection.recv(1 << 16), b"")
        return b"".join(parts)


@pytest.fixture
def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    Gauge("fedlora_answers", "what is known", registry=found).set(42)
    return found


def test_metrics_health_and_readiness_are_told(registry: CollectorRegistry) -> None:
    obstacles = ["the disk is full", ""]
    with WatchPort("0", registry, obstacle=lambda: obstacles.pop(0)) as port:
        metrics = asked(port.number, b"GET /metrics?name=x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert metrics.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in metrics
        assert metrics.endswith(b"\nfedlora_answers 42.0\n")
        assert asked(port.number, b"GET /health HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\nalive\n")
        assert asked(port.number, b"GET /ready HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 503 ")
        assert asked(port.number, b"GET /ready HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\nready\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../health HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"501"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"4"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"<!DOCTYPE"),
    ],
    ids=["another page", "a way around", "another verb", "too long", "no HTTP"],
)
def test_what_is_no_such_request_is_refused(registry: CollectorRegistry, request_bytes: bytes, status: bytes) -> None:
    with WatchPort("0", registry, obstacle=str) as port:
        try:
            answer = asked(port.number, request_bytes)
        except ConnectionResetError:  # More was on its way than is ever read.
            answer = b""
        assert b" 200 " not in answer.partition(b"\n")[0]
        assert status in answer or len(request_bytes) > 8192
        assert asked(port.number, b"GET /health HTTP/1.1\r\n\r\n").endswith(b"alive\n")


def test_who_connects_and_says_nothing_takes_one_of_a_few_places(registry: CollectorRegistry) -> None:
    with WatchPort("0", registry, obstacle=str) as port, ExitStack() as held:
        silent = [held.enter_context(_connected(port.number)) for _ in range(MOST_CONNECTIONS)]
        with _connected(port.number) as one_more:
            assert one_more.recv(1) == b""
        silent[0].sendall(b"GET /health HTTP/1.1\r\n\r\n")
        assert silent[0].recv(1 << 16).startswith(b"HTTP/1.0 200 ")


def test_metrics_that_fail_are_logged_and_the_port_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    registry.register(Broken())
    with WatchPort("0", registry, obstacle=str) as port:
        assert asked(port.number, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 500 ")
        assert asked(port.number, b"GET /health HTTP/1.1\r\n\r\n").endswith(b"alive\n")
    assert "RuntimeError: a bug" in caplog.text


@pytest.mark.parametrize(("address", "is_said"), [("0", False), ("127.0.0.1:0", False), ("0.0.0.0:0", True)])
def test_an_address_that_others_reach_is_said(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, address: str, is_said: bool
) -> None:
    caplog.set_level(logging.INFO)
    with WatchPort(address, registry, obstacle=str) as port:
        assert asked(port.number, b"GET /health HTTP/1.1\r\n\r\n").endswith(b"alive\n")
    assert f":{port.number}/metrics" in caplog.text
    assert ("other machines can read them without a password" in caplog.text) == is_said


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (str, "Address already in use.*Choose another --metrics"),
        (lambda _taken: "203.0.113.7:0", "cannot listen on 203.0.113.7:0 for metrics"),
        (lambda _taken: "70000", "the port is no number from 0 to 65535"),
        (lambda _taken: "here", "'here' is no address"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(
    registry: CollectorRegistry, address: Callable[[int], str], words: str
) -> None:
    with WatchPort("0", registry, obstacle=str) as port, pytest.raises(ConfigError, match=words):
        WatchPort(address(port.number), registry, obstacle=str)


def _connected(number: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", number), timeout=30)


def test_who_is_scraped_waits_for_one_scrape_more_and_who_is_not_for_none(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.common.watch_port._LATE_SECONDS", 3600.0)
    with WatchPort("0", registry, obstacle=str) as port:
        port.await_scrape()
        assert b" 200 OK" in asked(port.number, b"GET /metrics HTTP/1.1\r\n\r\n")
        port.await_scrape()
        assert b" 200 OK" in asked(port.number, b"GET /metrics HTTP/1.1\r\n\r\n")
        waiting = threading.Thread(target=port.await_scrape)
        waiting.start()
        assert b" 200 OK" in asked(port.number, b"GET /ready HTTP/1.1\r\n\r\n")
        assert waiting.is_alive()
        while waiting.is_alive():
            asked(port.number, b"GET /metrics HTTP/1.1\r\n\r\n")
            waiting.join(0.1)
