"""The small HTTP port on which a process is watched: /metrics, /health and /ready.

It answers GET of these three and nothing else, one request a connection, and reads no more of a request than fits into
some kilobytes and comes within some seconds.
"""

import io
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from fedlora.common.addresses import split_address
from fedlora.common.errors import ConfigError

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_MOST_REQUEST_BYTES = 8 << 10
_REQUEST_SECONDS = 5.0
_MOST_CONNECTIONS = 16
# As long as Prometheus leaves between two scrapes unless it is told otherwise, and what one may be late.
_LONGEST_INTERVAL_SECONDS, _LATE_SECONDS = 60.0, 5.0
_PLAIN_TEXT = "text/plain; charset=utf-8"


class WatchPort:
    """The port, taken when it is made, and served for as long as the context lasts."""

    def __init__(self, address: str, registry: CollectorRegistry, *, obstacle: Callable[[], str]) -> None:
        """Take the port.

        Args:
            address: HOST:PORT, or the port alone for loopback; port 0 is any that is free.
            registry: what /metrics shows.
            obstacle: says in a few words what keeps the process from being ready, nothing if it is.

        Raises:
            ConfigError: the address cannot be used.
        """
        host, port = split_address(f"{_LOOPBACK}:{address}" if address.isdecimal() else address, listens=True)
        try:
            family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _Server(found, family, _answers(registry, obstacle))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {address} for metrics ({error.strerror}); is another process there? "
                "Choose another --metrics"
            ) from error
        self.number = int(self._server.server_address[1])
        self._host = str(self._server.server_address[0])
        self._thread = threading.Thread(target=self._server.serve_forever, name="watch port", daemon=True)

    def __enter__(self) -> "WatchPort":
        shown = f"[{self._host}]" if ":" in self._host else self._host
        logger.info("watched on http://%s:%d/metrics, /health and /ready", shown, self.number)
        if not ipaddress.ip_address(self._host.partition("%")[0]).is_loopback:
            logger.warning(
                "metrics are on %s: other machines can read them without a password; let a firewall say which", shown
            )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def await_scrape(self) -> None:
        """Wait until who scrapes the process has seen it as it is now: an interval at most, and not if nobody does."""
        scrapes = self._server.scrapes
        if seconds := scrapes.interval_seconds:
            logger.info("waiting for the last scrape of /metrics, %.0f s at most", seconds + _LATE_SECONDS)
            scrapes.await_next(seconds + _LATE_SECONDS)


class _Scrapes:
    """When the last scrapes were; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._times: list[float] = []

    def note(self, began: float) -> None:
        """Note a scrape that has been answered, and when that began."""
        with self._changed:
            self._times = [*self._times[-1:], began]
            self._changed.notify_all()

    @property
    def interval_seconds(self) -> float:
        """How far the last two were apart, as the next one will be; 0 where nobody has come back for a second."""
        with self._changed:
            apart = self._times[-1] - self._times[0] if self._times else 0.0
            return min(apart, _LONGEST_INTERVAL_SECONDS)

    def await_next(self, seconds: float) -> None:
        """Wait for one that begins from here on, so long at most."""
        now = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: self._times[-1] > now, seconds)


Answer = tuple[HTTPStatus, str, bytes]


def _answers(registry: CollectorRegistry, obstacle: Callable[[], str]) -> Callable[[str], Answer | None]:
    """Return what gives the status, type and content of a path; None where there is no such page."""

    def answer(path: str) -> Answer | None:
        match path:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)
            case "/health":
                return HTTPStatus.OK, _PLAIN_TEXT, b"alive\n"
            case "/ready":
                found = obstacle()
                status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
                return status, _PLAIN_TEXT, f"{found or 'ready'}\n".encode()
            case _:
                return None

    return answer


class _Server(ThreadingHTTPServer):
    """A thread for each of a few connections; one more is closed at once."""

    daemon_threads = True

    def __init__(self, address: Any, family: int, answer: Callable[[str], Answer | None]) -> None:
        self.address_family = family
        self.answer = answer
        self.scrapes = _Scrapes()
        self._room = threading.Semaphore(_MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own asks a name server what the host is called.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, *_: object) -> None:
        logger.debug("a request to the watch port broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "fedlora", ""

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BytesIO(_head_of(self.connection))
        self.connection.settimeout(_REQUEST_SECONDS)

    def do_GET(self) -> None:
        path, began = urlsplit(self.path).path, time.monotonic()
        try:
            answer = self.server.answer(path)
        except Exception:
            logger.exception("%s cannot be answered; this is a bug in fedlora", "a page of the watch port")
            answer = HTTPStatus.INTERNAL_SERVER_ERROR, _PLAIN_TEXT, b"a bug; the log has it\n"
        status, kind, content = answer or (HTTPStatus.NOT_FOUND, _PLAIN_TEXT, b"/metrics, /health or /ready\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if path == "/metrics":
            self.server.scrapes.note(began)

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is no news."""


def _head_of(connection: socket.socket) -> bytes:
    """Return the head of a request, as much as comes of it in time."""
    end, head = time.monotonic() + _REQUEST_SECONDS, b""
    while b"\r\n\r\n" not in head and len(head) < _MOST_REQUEST_BYTES:
        connection.settimeout(max(0.001, end - time.monotonic()))
        received = connection.recv(_MOST_REQUEST_BYTES - len(head))
        if not received:
            break
        head += received
    return head
