"""The dashboard on its port: in the main thread of a command, or in one of its own beside a server."""

import errno
import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.common.addresses import split_address
from fedlora.common.errors import ConfigError
from fedlora.common.open_files import require_descriptors

if TYPE_CHECKING:
    import uvicorn

_MOST_CONNECTIONS = 128
_SECONDS_TO_END = 3


class Dashboard:
    """A dashboard on a folder, its port taken and its pages not yet served.

    Attributes:
        address: HOST:PORT, with the port that it has.
        notes: what whoever starts it should know, in a line each.
    """

    def __init__(self, folder: Path, address: str) -> None:
        """`address` is HOST:PORT, port 0 any that is free; a folder that is not there yet may come.

        Raises:
            ConfigError: the address cannot be had.
        """
        self._folder = folder
        self._socket = _listening(address)
        host = address.rpartition(":")[0]
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        self.notes = _notes(self._socket)
        self._server = self._uvicorn()

    @property
    def url(self) -> str:
        """What to open in a browser."""
        host, port = split_address(self.address)
        host = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def serve(self) -> None:
        """Answer until SIGINT or SIGTERM, where this is the main thread, or until `stop` is called."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    def stop(self) -> None:
        """Have `serve` return, in another thread, once those at work have their answer."""
        self._server.should_exit = True

    def _uvicorn(self) -> "uvicorn.Server":
        import uvicorn

        from fedlora.dashboard.app import dashboard_app
        from fedlora.dashboard.prompt_connections import PromptConnection

        config = uvicorn.Config(
            dashboard_app(self._folder, address=self.address, is_closing=lambda: self._server.should_exit),
            http=PromptConnection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )
        return uvicorn.Server(config)


@contextmanager
def dashboard_beside(folder: Path, address: str) -> Iterator[Dashboard]:
    """Serve a dashboard in a thread of its own for as long as the block lasts.

    Raises:
        ConfigError: as `Dashboard` does.
    """
    dashboard = Dashboard(folder, address)
    thread = threading.Thread(target=dashboard.serve, name="dashboard", daemon=True)
    thread.start()
    try:
        yield dashboard
    finally:
        dashboard.stop()
        thread.join(_SECONDS_TO_END + 2.0)


def _listening(address: str) -> socket.socket:
    """Return a socket that listens at HOST:PORT.

    Raises:
        ConfigError: it cannot be had.
    """
    host, port = split_address(address, listens=True)
    try:
        family, kind, protocol, _, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"{host} has no address ({error.strerror}); look at the spelling") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(at)
        listener.listen(_MOST_CONNECTIONS)
    except OSError as error:
        listener.close()
        require_descriptors(error)
        taken = error.errno == errno.EADDRINUSE
        what = "is taken by another program; choose another port" if taken else f"cannot be had ({error.strerror})"
        raise ConfigError(f"{address} {what}") from error
    return listener


def _notes(listener: socket.socket) -> tuple[str, ...]:
    host = str(listener.getsockname()[0]).partition("%")[0]
    if ipaddress.ip_address(host).is_loopback:
        return ()
    return (
        "the page has no sign-in and no encryption: whoever reaches this address sees the runs, the sites' names and "
        "the audit log, and can download every adapter",
    )
