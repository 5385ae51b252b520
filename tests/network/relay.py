"""A TCP relay on loopback that counts what passes, and slows, stalls, resets or refuses it on command.

It ends TCP on both sides: while nothing moves, the kernel still acknowledges what a peer sends until its buffers (some
megabytes) are full, and each end sees the other's FIN or RST only when the relay passes it on.
"""

import asyncio
import ipaddress
import socket
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

T = TypeVar("T")

CHUNK_BYTES = 65536
SLICE_SECONDS = 0.01  # At a limited rate, so much is taken at once: small beside any time that a test measures.
BURST_SECONDS = 0.05  # A late wake-up of the loop, up to this, is made good, so that the mean rate is kept.


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a relay does to the bytes it passes."""

    bits_per_second: float | None = None
    """The rate of each direction, which all connections share; None: no limit."""
    delay_seconds: float = 0.0
    """How much later than sent a byte arrives, in each direction; it does not lower the rate."""
    reset_after_bytes_up: int | None = None
    """A connection is reset once it has passed so many bytes towards the target."""
    reset_after_bytes_down: int | None = None
    """A connection is reset once it has passed so many bytes towards the client."""
    max_resets: int | None = None
    """How many connections the two limits above reset in the relay's life; None: every one."""


class Connection:
    """A client's socket, the target's once `open_target` returned, and whether both end with RST instead of FIN."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self._sockets = [client]
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def open_target(self, host: str, port: int) -> socket.socket:
        """Return a socket connected to the target.

        Args:
            host: A loopback address or `localhost`, for which ::1 is tried after 127.0.0.1.
            port: The target's port.

        Raises:
            OSError: The host is not a loopback, or nobody listens there.
        """
        error = OSError(f"found the host {host!r}, expected a loopback address or localhost")
        for address in ("127.0.0.1", "::1") if host == "localhost" else (host,):
            if not _is_loopback(address):
                break
            target = socket.socket(_family(address))
            self._sockets.append(target)
            target.setblocking(False)
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await asyncio.get_running_loop().sock_connect(target, (address, port))
            except OSError as refused:
                error = refused
            else:
                return target
        raise error

    def end_with_reset(self) -> None:
        for end in self._sockets:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        for end in self._sockets:
            end.close()


class LoopbackServer:
    """Listens on an ephemeral port and serves each connection as a task of an event loop in a thread of its own.

    A connection is closed when its task ends, and reset when that raises OSError. Every method is for other threads
    than the loop's, and returns when what it says is done.
    """

    def __init__(self, host: str, serve: Callable[[Connection], Awaitable[None]]) -> None:
        if not _is_loopback(host):
            raise ValueError(f"found the host {host!r}, expected a loopback address such as 127.0.0.1 or ::1")
        self.host = host
        self.num_connections = 0
        self._serve = serve
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._listener: socket.socket | None = None
        # Bound but never listening: while connections are refused, nobody else is given the port.
        self._reservation = self._bind(0)
        self.port: int = self._reservation.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"loopback-{self.port}", daemon=True)
        self._thread.start()
        self.listen()

    @property
    def num_open(self) -> int:
        return len(self._connections)

    def call(self, function: Callable[[], T]) -> T:
        """Return what the function returns when called in the loop's thread."""

        async def called() -> T:
            return function()

        if self._loop.is_closed():
            raise RuntimeError(f"the server at {self.host} port {self.port} is closed")
        return asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    def listen(self) -> None:
        self.call(self._listen)

    def refuse(self) -> None:
        """Refuse new connections; those waiting to be accepted are reset, the others go on."""
        self.call(self._refuse)

    def end_all(self, *, with_reset: bool) -> None:
        """Close all connections, with RST or else with FIN (where all that came was read)."""
        tasks = self.call(lambda: [self._end(*item, with_reset=with_reset) for item in self._connections.items()])
        if tasks:
            asyncio.run_coroutine_threadsafe(asyncio.wait(tasks), self._loop).result()

    def close(self) -> None:
        """Close the connections, the port and the thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        self.refuse()
        self.end_all(with_reset=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reservation.close()

    def _bind(self, port: int) -> socket.socket:
        bound = socket.socket(_family(self.host))
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((self.host, port))
        return bound

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = listener = self._bind(self.port)
            listener.setblocking(False)
            listener.listen(128)
            self._loop.add_reader(listener, self._accept, listener)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection = Connection(listener.accept()[0])
        except BlockingIOError:  # The client is gone again.
            return
        task = self._loop.create_task(self._tend(connection))
        self._connections[task] = connection
        self.num_connections += 1
        # A task that is cancelled before it began runs nothing of itself.
        task.add_done_callback(self._forget)

    async def _tend(self, connection: Connection) -> None:
        try:
            await self._serve(connection)
        except* OSError:
            connection.end_with_reset()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).close()

    @staticmethod
    def _end(task: asyncio.Task[None], connection: Connection, *, with_reset: bool) -> asyncio.Task[None]:
        if with_reset:
            connection.end_with_reset()
        task.cancel()
        return task


class Relay:
    """Passes the bytes of connections to `host`, `port` on to the target, under conditions that may change at any time.

    Use it as a context manager, or call `close`. Up is towards the target. What a connection cannot pass on (its target
    refuses, one end resets) ends in a reset of both ends.

    Args:
        target: The host (a loopback) and port to which every connection goes.
        host: The loopback address to listen on, 127.0.0.1 or ::1.
        conditions: What is done to the bytes; assign to `conditions` to change it, from the next chunk on.
    """

    def __init__(
        self, target: tuple[str, int], *, host: str = "127.0.0.1", conditions: Conditions | None = None
    ) -> None:
        self.conditions = conditions or Conditions()
        self._target = target
        self._lock = threading.Lock()
        self._up, self._down = _Direction(), _Direction()
        self._num_resets = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._end_of_stall: asyncio.TimerHandle | None = None
        self._server = LoopbackServer(host, self._carry)
        self.host, self.port = self._server.host, self._server.port
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def bytes_up(self) -> int:
        """Bytes handed to the target's side; none of them can be seen there before it is counted here."""
        with self._lock:
            return self._up.num_bytes

    @property
    def bytes_down(self) -> int:
        """Bytes handed to the clients' side; none of them can be seen there before it is counted here."""
        with self._lock:
            return self._down.num_bytes

    @property
    def num_connections(self) -> int:
        """Connections accepted so far; a client's connect may return shortly before it counts."""
        return self._server.num_connections

    @property
    def num_open(self) -> int:
        return self._server.num_open

    def stall(self, seconds: float) -> None:
        """Move nothing for some seconds, not even the end of a stream; a later stall or swallow replaces this one."""
        self._server.call(lambda: self._stop(seconds))

    def swallow(self) -> None:
        """Keep connections open, and accept new ones, but move nothing until `mend`."""
        self._server.call(lambda: self._stop(None))

    def cut(self) -> None:
        """Refuse new connections until `mend`; those that are open go on."""
        self._server.refuse()

    def mend(self) -> None:
        """End a cut, a stall and a swallow: what was held back goes on. The conditions stay."""
        self._server.call(self._go_on)
        self._server.listen()

    def reset_all(self) -> None:
        """End all connections now with an RST to both ends; what was under way is lost."""
        self._server.end_all(with_reset=True)

    def close(self) -> None:
        """Close all connections, the port and the thread; the counters can still be read."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self, seconds: float | None) -> None:
        self._go_on()
        self._flowing.clear()
        if seconds is not None:
            self._end_of_stall = asyncio.get_running_loop().call_later(seconds, self._flowing.set)

    def _go_on(self) -> None:
        if self._end_of_stall is not None:
            self._end_of_stall.cancel()
        self._flowing.set()

    async def _carry(self, connection: Connection) -> None:
        client, target = connection.client, await connection.open_target(*self._target)
        async with asyncio.TaskGroup() as tasks:
            for source, sink, direction in ((client, target, self._up), (target, client, self._down)):
                wire = _Wire()
                tasks.create_task(self._take(source, wire, direction))
                tasks.create_task(self._give(sink, wire, direction))

    async def _take(self, source: socket.socket, wire: "_Wire", direction: "_Direction") -> None:
        loop = asyncio.get_running_loop()
        chunk = b"any"
        while chunk:
            await wire.wait_for_room()
            await self._flowing.wait()
            rate = self.conditions.bits_per_second
            size = CHUNK_BYTES if rate is None else max(1, min(CHUNK_BYTES, int(rate / 8 * SLICE_SECONDS)))
            chunk = await loop.sock_recv(source, size)
            await direction.wait_for_turn(len(chunk), self.conditions.bits_per_second)
            await wire.put(loop.time() + self.conditions.delay_seconds, chunk)
            await asyncio.sleep(0)  # Where there is always more to take, none of the above lets others run.

    async def _give(self, sink: socket.socket, wire: "_Wire", direction: "_Direction") -> None:
        passed = 0
        while chunk := await wire.wait_for_first():
            limit = self._reset_limit(direction)
            if limit is not None and passed + len(chunk) >= limit:
                self._num_resets += 1
                await self._send(sink, chunk[: max(0, limit - passed)], direction)
                raise ConnectionResetError(f"{limit} bytes have passed")
            await self._send(sink, chunk, direction)
            passed += len(chunk)
            await wire.drop_first()
        await self._flowing.wait()
        sink.shutdown(socket.SHUT_WR)

    def _reset_limit(self, direction: "_Direction") -> int | None:
        conditions = self.conditions
        if conditions.max_resets is not None and self._num_resets >= conditions.max_resets:
            return None
        return conditions.reset_after_bytes_up if direction is self._up else conditions.reset_after_bytes_down

    async def _send(self, sink: socket.socket, chunk: bytes, direction: "_Direction") -> None:
        rest = memoryview(chunk)
        while rest:
            await self._flowing.wait()
            try:
                with self._lock:
                    sent = sink.send(rest)
                    direction.num_bytes += sent
            except BlockingIOError:
                await _wait_until_writable(sink)
            else:
                rest = rest[sent:]


class _Direction:
    """The bytes passed in one direction by all connections, and from when on the next of them have their turn."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._free_at = 0.0

    async def wait_for_turn(self, num_bytes: int, rate: float | None) -> None:
        if rate is not None:
            now = asyncio.get_running_loop().time()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + num_bytes * 8 / rate
            await asyncio.sleep(max(0.0, self._free_at - now))


class _Wire:
    """What is under way between two ends of a connection: chunks with the times at which they are due."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._changed = asyncio.Condition()

    async def wait_for_room(self) -> None:
        """Wait while a chunk is overdue: its receiver does not read, so neither may the relay."""
        time = asyncio.get_running_loop().time
        async with self._changed:
            await self._changed.wait_for(lambda: not self._chunks or self._chunks[0][0] > time())

    async def put(self, due: float, chunk: bytes) -> None:
        async with self._changed:
            self._chunks.append((due, chunk))
            self._changed.notify_all()

    async def wait_for_first(self) -> bytes:
        """Return the first chunk, once it is due, and leave it on the wire."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._chunks))
        due, chunk = self._chunks[0]
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        return chunk

    async def drop_first(self) -> None:
        async with self._changed:
            self._chunks.popleft()
            self._changed.notify_all()


async def _wait_until_writable(sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(sink, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(sink)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
