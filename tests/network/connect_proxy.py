"""An HTTP CONNECT proxy on loopback that counts its tunnels and remembers where they were to go."""

import asyncio
import base64
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import quote

sys.path.append(str(Path(__file__).parent))  # Tests are not packages: this one's sibling is found by its folder.

from relay import Connection, LoopbackServer

CHUNK_BYTES = 65536
MAX_HEAD_BYTES = 16384
# Unread bytes of a refused request would turn the close into a reset, which can overtake the answer.
DRAIN_SECONDS = 2.0


class ConnectProxy:
    """Opens a tunnel to a loopback target for each CONNECT; all else is refused and the connection closed.

    Refused are other methods (405), a missing or wrong password (407), a head that is no HTTP or has no host:port
    (400), and a target that is not a loopback or does not listen (502). Use it as a context manager, or call `close`.

    Args:
        host: The loopback address to listen on, 127.0.0.1 or ::1.
        credentials: The user and password that every request must bring by Basic authentication; None: nobody is asked.
    """

    def __init__(self, *, host: str = "127.0.0.1", credentials: tuple[str, str] | None = None) -> None:
        self._expected = None if credentials is None else base64.b64encode(":".join(credentials).encode()).decode()
        self._lock = threading.Lock()
        self._targets: list[str] = []
        self._num_tunnels = self._bytes_up = self._bytes_down = 0
        self._server = LoopbackServer(host, self._serve)
        self.host, self.port = self._server.host, self._server.port
        login = "" if credentials is None else ":".join(quote(part, safe="") for part in credentials) + "@"
        self.url = f"http://{login}{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def targets(self) -> tuple[str, ...]:
        """What every CONNECT named, refused ones included, in order and as it was written: `localhost:50051`."""
        with self._lock:
            return tuple(self._targets)

    @property
    def num_tunnels(self) -> int:
        """Tunnels opened so far."""
        with self._lock:
            return self._num_tunnels

    @property
    def num_open(self) -> int:
        """Connections open now, those whose request is still under way included."""
        return self._server.num_open

    @property
    def bytes_up(self) -> int:
        """Bytes passed through tunnels to their targets; the requests are not counted."""
        with self._lock:
            return self._bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes passed through tunnels to the clients; the proxy's own answers are not counted."""
        with self._lock:
            return self._bytes_down

    def reset_all(self) -> None:
        """End all connections now with an RST to both ends; what was under way is lost."""
        self._server.end_all(with_reset=True)

    def close(self) -> None:
        """Close all connections, the port and the thread; what was counted can still be read."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _serve(self, connection: Connection) -> None:
        head, early = await _read_head(connection.client)
        try:
            target = await self._open(connection, head)
        except _RequestError as refused:
            await _refuse(connection.client, refused.status)
            return
        with self._lock:
            self._num_tunnels += 1
        established = b"HTTP/1.1 200 Connection established\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(connection.client, established)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pass(connection.client, target, early, up=True))
            tasks.create_task(self._pass(target, connection.client, b"", up=False))

    async def _open(self, connection: Connection, head: bytes) -> socket.socket:
        first_line, *lines = head.decode("latin-1").split("\r\n")
        method, _, rest = first_line.partition(" ")
        authority, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            raise _RequestError(HTTPStatus.BAD_REQUEST)
        if method != "CONNECT":
            raise _RequestError(HTTPStatus.METHOD_NOT_ALLOWED)
        with self._lock:
            self._targets.append(authority)
        if self._expected is not None and not _is_authorised(lines, self._expected):
            raise _RequestError(HTTPStatus.PROXY_AUTHENTICATION_REQUIRED)
        host, _, port = authority.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise _RequestError(HTTPStatus.BAD_REQUEST)
        try:
            return await connection.open_target(host.strip("[]"), int(port))
        except OSError:
            raise _RequestError(HTTPStatus.BAD_GATEWAY) from None

    async def _pass(self, source: socket.socket, sink: socket.socket, chunk: bytes, *, up: bool) -> None:
        loop = asyncio.get_running_loop()
        while chunk or (chunk := await loop.sock_recv(source, CHUNK_BYTES)):
            with self._lock:  # Before it is sent: who has received a byte finds it counted.
                if up:
                    self._bytes_up += len(chunk)
                else:
                    self._bytes_down += len(chunk)
            await loop.sock_sendall(sink, chunk)
            chunk = b""
        sink.shutdown(socket.SHUT_WR)


class _RequestError(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status)
        self.status = status


async def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """Return a request's head, without its empty line, and what came after it in the same reads.

    A head that ends early or never is returned as empty.
    """
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = await asyncio.get_running_loop().sock_recv(client, 4096)
        received += chunk
        if not chunk or len(received) > MAX_HEAD_BYTES:
            return b"", b""
    head, _, early = received.partition(b"\r\n\r\n")
    return head, early


def _is_authorised(lines: list[str], expected: str) -> bool:
    for line in lines:
        name, _, value = line.partition(":")
        scheme, _, token = value.strip().partition(" ")
        if name.strip().lower() == "proxy-authorization" and scheme.lower() == "basic" and token.strip() == expected:
            return True
    return False


async def _refuse(client: socket.socket, status: HTTPStatus) -> None:
    """Send the proxy's refusal and wait for the client to close, for a while."""
    loop = asyncio.get_running_loop()
    extra = {
        HTTPStatus.METHOD_NOT_ALLOWED: "Allow: CONNECT\r\n",
        HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: 'Proxy-Authenticate: Basic realm="fedlora tests"\r\n',
    }.get(status, "")
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{extra}Content-Length: 0\r\nConnection: close\r\n\r\n"
    await loop.sock_sendall(client, head.encode())
    client.shutdown(socket.SHUT_WR)
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while await loop.sock_recv(client, CHUNK_BYTES):
                pass
