"""An aggregation server: the ServerApp over the gRPC Grid, on one port, over one run's folder."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import grpc.aio
from flwr.app import Context, RecordDict

from fedlora.common import open_files
from fedlora.common.addresses import require_loopback
from fedlora.common.errors import ConfigError
from fedlora.common.repeatedly import repeatedly
from fedlora.common.run_file import require_labels
from fedlora.common.run_folder import EXCHANGE_FOLDER, IDENTITY_FOLDER
from fedlora.server.disk.audit import Entry
from fedlora.server.disk.audited import audited
from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.disk.registry import Registry
from fedlora.server.disk.space import LEAST_FREE_BYTES, DiskWatch, why_not_writable
from fedlora.server.disk.stop_request import stop_requests_heeded
from fedlora.server.identity.authority import Authority
from fedlora.server.identity.tickets import TicketOffice
from fedlora.server.sites.grpc.enrolment import EnrolmentService
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.server.sites.grpc.port import ExternalPair, Port, ServerCertificates
from fedlora.server.sites.grpc.refusals import Refusals
from fedlora.server.sites.grpc.registry import RegistryService
from fedlora.server.sites.grpc.request_traces import RequestTraces
from fedlora.server.sites.grpc.session import SessionService
from fedlora.server.sites.grpc.transfer import TransferService
from fedlora.server.whole_run import Rounds
from fedlora.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server
from fedlora.v1.exchange_pb2_grpc import add_AdapterExchangeServiceServicer_to_server
from fedlora.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from fedlora.v1.session_pb2_grpc import add_SessionServiceServicer_to_server

logger = logging.getLogger(__name__)

# For some hundred sites.
_ENOUGH_OPEN_FILES = 1_024
_WATCH_SECONDS = 5.0


@dataclass(frozen=True)
class Door:
    """How a server listens, and whom it lets in.

    Attributes:
        address: HOST:PORT.
        is_insecure: plain text without certificates, on loopback alone.
        identity: the folder of the authority and the sites' records; None for the run folder's own.
        external_ca, external_pair: the files of an authority of one's own, and the server's pair from it.
    """

    address: str
    is_insecure: bool = False
    identity: Path | None = None
    external_ca: Path | None = None
    external_pair: ExternalPair | None = None

    def identity_folder(self, run_folder: Path) -> Path:
        """Return the folder of the authority and the sites' records."""
        return self.identity or run_folder / IDENTITY_FOLDER


def serve(
    rounds: Rounds,
    door: Door,
    *,
    check: Callable[[Path], str],
    opened: Callable[[int], None] = lambda _port: None,
    traces: RequestTraces | None = None,
) -> None:
    """Run the rounds that are left over the sites that connect; returns when the run is over.

    SIGTERM, SIGINT and `server stop` end it in good order: what was accepted is on disk.

    Args:
        check: says what is wrong with the PEFT folder of an adapter that is to be published, nothing if all is well.
        opened: called with the port's number once sites can connect.
        traces: hears of each request to a site.

    Raises:
        RunStopped: it was asked to stop; the same call goes on.
        FedloraError: the run, the folder or the port cannot be used.
    """
    config, folder = rounds.run.config, rounds.run.folder
    require_labels(config)
    _raise_open_files()
    with audited(folder, rounds.listener) as (listener, note):
        _serve(replace(rounds, listener=listener), door, check=check, opened=opened, note=note, traces=traces)


def _serve(
    rounds: Rounds,
    door: Door,
    *,
    check: Callable[[Path], str],
    opened: Callable[[int], None],
    note: Callable[[Entry], None],
    traces: RequestTraces | None,
) -> None:
    """Serve; `note` is told of begin and end, for the audit log."""
    config, folder = rounds.run.config, rounds.run.folder
    exchange = ExchangeStore(folder / EXCHANGE_FOLDER, precision=config.exchange.precision)
    tickets = TicketOffice(exchange.ticket_key_file)
    max_start_bytes = config.exchange.max_start_megabytes * 10**6
    grid = GrpcGrid(
        exchange,
        tickets,
        max_start_bytes=max_start_bytes,
        num_moments=len(config.train.shared_moments),
        listener=rounds.listener,
        traces=traces,
    )
    authority = _authority(door, folder)
    credentials = None
    if authority is None:
        require_loopback(door.address)
    else:
        credentials = ServerCertificates(authority, door.external_pair).credentials()
    refusals = Refusals(rounds.listener)
    gate = Gate(authority, run=config.run.name, refusals=refusals)
    registry = Registry(folder, check=check, keep=config.exchange.published)
    disk = DiskWatch(
        folder,
        rounds.listener,
        # An update of each site as it came and made whole, and the journal's adapters.
        needed_bytes=lambda: (
            LEAST_FREE_BYTES
            + exchange.newest_bytes * (2 * max(1, grid.counts()[1]) + 3) * (1 + len(config.train.shared_moments))
        ),
    )

    def watch() -> None:
        disk.look()
        refusals.tell()

    def add_services(server: grpc.aio.Server) -> None:
        add_SessionServiceServicer_to_server(SessionService(grid, exchange, gate, config), server)
        transfer = TransferService(exchange, tickets, grid, gate, full=disk.look)
        add_AdapterExchangeServiceServicer_to_server(transfer, server)
        add_RegistryServiceServicer_to_server(RegistryService(registry, gate, rounds.listener), server)
        add_EnrolmentServiceServicer_to_server(EnrolmentService(gate, rounds.listener), server)

    app = rounds.server_app(first=registry.heard)

    def stop() -> None:
        grid.stop(is_finished=False)

    disk.look()
    is_finished = False
    try:
        with (
            repeatedly(watch, seconds=_WATCH_SECONDS),
            Port(
                door.address, credentials, add_services, gate=gate, is_ready=lambda: not why_not_writable(folder)
            ) as port,
            _signals_heeded(stop),
            stop_requests_heeded(folder, stop),
        ):
            note({"event": "started", "version": version("fedlora"), "address": door.address, "port": port.number})
            opened(port.number)
            try:
                app(grid, Context(1, 0, {}, RecordDict(), {}))
                is_finished = True
            finally:
                registry.close(is_finished=is_finished)
                grid.stop(is_finished=is_finished)
    finally:
        disk.look()
        refusals.tell(is_over=True)
        note({"event": "stopped", "is_finished": is_finished})
    exchange.clear()


def _raise_open_files() -> None:
    """Let this process have as many files and connections open as it may, and say how many those are."""
    most = open_files.raise_limit()
    level = logging.INFO if most >= _ENOUGH_OPEN_FILES else logging.WARNING
    logger.log(
        level, "this process may have %d files and connections open (ulimit -n), of sites at most %d", most, most // 2
    )


def _authority(door: Door, folder: Path) -> Authority | None:
    if door.is_insecure:
        return None
    identity = door.identity_folder(folder)
    if door.external_ca is None:
        return Authority.open(identity, datetime.now(UTC))
    try:
        return Authority.external(identity, door.external_ca.read_bytes())
    except OSError as error:
        open_files.require_descriptors(error)
        raise ConfigError(f"{door.external_ca}: cannot be read ({error.strerror}); expected a file in PEM") from error


@contextmanager
def _signals_heeded(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the run at its next look."""

    def heed(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
