"""The server's one port: all services on it, in a thread of their own, with certificates that renew themselves."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from fedlora.common import certificates, open_files
from fedlora.common.addresses import split_address
from fedlora.common.channels import both_ends
from fedlora.common.errors import ConfigError, FedloraError
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.described import describe_services, keep_ready
from fedlora.server.sites.grpc.doorkeeper import LOOK_SECONDS, LOOKING_SHARE, Doorkeeper
from fedlora.server.sites.grpc.gate import Context, Gate

logger = logging.getLogger(__name__)

_START_SECONDS = 20.0
_GRACE_SECONDS = 2.0
_READY_SECONDS = 5.0
_WARN_BEFORE = timedelta(days=14)
# A site sends chunks of a file, and otherwise numbers.
_MAX_RECEIVED_BYTES = 1 << 20
_MAX_CALLS_OF_A_CONNECTION = 100
# Who has not shown a certificate until then, or makes no call, is somebody else.
_HANDSHAKE_MS, _IDLE_MS = 20_000, 300_000


@dataclass(frozen=True)
class ExternalPair:
    """The files of the server's own key and certificate, where an external authority signs them."""

    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes]:
        """Return key and certificate.

        Raises:
            ConfigError: a file cannot be read, or they do not fit together.
        """
        try:
            key, certificate = self.key.read_bytes(), self.certificate.read_bytes()
        except OSError as error:
            open_files.require_descriptors(error)
            raise ConfigError(f"{error.filename}: cannot be read ({error.strerror}); expected a file in PEM") from error
        certificates.check_fits(key, certificate)
        return key, certificate


class ServerCertificates:
    """What the port shows and trusts: asked at every new connection, it follows the files without a restart."""

    def __init__(self, authority: Authority, pair: ExternalPair | None) -> None:
        self._authority = authority
        self._external = pair
        self._shown: tuple[bytes, bytes, bytes] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a port that requires a site's certificate of every caller.

        Raises:
            FedloraError: key and certificate cannot be read.
        """
        first = self._configuration()
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            first, cast(Any, self._next), require_client_authentication=True
        )
        return credentials

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        now = datetime.now(UTC)
        key, chain = self._external.read() if self._external is not None else self._authority.server_pair(now)
        if (end := certificates.expiry(chain)) - now < _WARN_BEFORE:
            logger.warning("the server's certificate ends on %s; renew it", f"{end:%Y-%m-%d %H:%M} UTC")
        roots = self._authority.trusted_roots(now)
        self._shown = key, chain, roots
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def _next(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what has changed since the last connection, None for nothing."""
        before = self._shown
        try:
            configuration = self._configuration()
        except FedloraError as error:
            logger.error("the former certificate stays in use: %s", error)
            return None
        return None if self._shown == before else configuration


class GatedHealth(HealthServicer):  # type: ignore[misc]
    """The standard health service, for whoever may call the others."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Say whether the server serves."""
        await self._gate.site(context)
        return cast(health_pb2.HealthCheckResponse, await super().Check(request, context))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Say so at once, and at each change."""
        await self._gate.site(context)
        await super().Watch(request, context)


class Port:
    """A gRPC server on one address, for as long as the context lasts."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        add_services: Callable[[grpc.aio.Server], None],
        *,
        gate: Gate | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        look_seconds: float = _READY_SECONDS,
    ) -> None:
        """`add_services` is called once, in the server's own event loop; without credentials it is plain text.

        With certificates there is a health service only behind a `gate`: TLS also lets in who was revoked or invited.
        It tells of `is_ready`, which is asked every `look_seconds`. Only in plain text is there reflection.
        """
        split_address(address, listens=True)
        self._address = address
        self._credentials = credentials
        self._add_services = add_services
        self._gate = gate
        self._is_ready = is_ready
        self._look_seconds = look_seconds
        self._started = threading.Event()
        self._error: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="port", daemon=True)
        self.number = 0

    def __enter__(self) -> "Port":
        """Open the port.

        Raises:
            ConfigError: the address cannot be used.
        """
        self._thread.start()
        if not self._started.wait(_START_SECONDS):
            raise ConfigError(f"cannot listen on {self._address} within {_START_SECONDS:.0f} s")
        # gRPC says that an address is taken, or not this machine's, with a RuntimeError.
        if isinstance(self._error, OSError | RuntimeError):
            raise ConfigError(
                f"cannot listen on {self._address} ({self._error}); is another server there? Choose another --listen"
            ) from self._error
        if self._error is not None:
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._loop is not None and self._over is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(_GRACE_SECONDS + _START_SECONDS)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        # The other half is for the files of a run, which must be written whoever connects.
        most = open_files.limit() // 2
        server = grpc.aio.server(
            options=[
                *both_ends(most_received=_MAX_RECEIVED_BYTES),
                ("grpc.max_allowed_incoming_connections", most),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.max_concurrent_streams", _MAX_CALLS_OF_A_CONNECTION),
                # Two servers on one port would share the sites between them.
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.http2.max_ping_strikes", 0),
                # Otherwise each connection's window grows into the megabytes.
                ("grpc.http2.bdp_probe", 0),
            ],
            maximum_concurrent_rpcs=4_096,
        )
        try:
            self._add_services(server)
            has_certificates = self._credentials is not None
            health = GatedHealth(self._gate) if has_certificates and self._gate is not None else HealthServicer()
            if self._credentials is None:
                health_pb2_grpc.add_HealthServicer_to_server(health, server)
                describe_services(server)
                self.number = server.add_insecure_port(self._address)
            else:
                if self._gate is not None:
                    health_pb2_grpc.add_HealthServicer_to_server(health, server)
                self.number = server.add_secure_port(self._address, self._credentials)
            if self.number == 0:
                raise OSError("no such address here")
            await server.start()
        except Exception as error:
            self._error = error
            self._started.set()
            return
        self._started.set()
        keeping = asyncio.create_task(self._keep_door(Doorkeeper(self.number, most)))
        telling = asyncio.create_task(keep_ready(health, self._is_ready, seconds=self._look_seconds))
        await self._over.wait()
        keeping.cancel()
        telling.cancel()
        await health.enter_graceful_shutdown()
        await server.stop(_GRACE_SECONDS)

    async def _keep_door(self, doorkeeper: Doorkeeper) -> None:
        took = 0.0
        while self._gate is not None:
            # Of a thousand connections a look takes some hundredths of a second.
            await asyncio.sleep(max(LOOK_SECONDS, took / LOOKING_SHARE))
            began = time.monotonic()
            await asyncio.to_thread(doorkeeper.look, self._gate.calls.peers)
            took = time.monotonic() - began
