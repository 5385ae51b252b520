"""An aggregation server: the ServerApp over the gRPC Grid, on one port, over one run's folder."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from types import FrameType

import grpc.aio

from fedlora.common import open_files
from fedlora.common.repeatedly import repeatedly
from fedlora.common.run_file import require_labels
from fedlora.server.disk.audit import Entry
from fedlora.server.disk.audited import audited
from fedlora.server.disk.space import why_not_writable
from fedlora.server.disk.stop_request import stop_requests_heeded
from fedlora.server.door import Door, authority_of, credentials_of
from fedlora.server.run_services import Check, RunServices
from fedlora.server.sites.grpc.enrolment import EnrolmentService
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.port import Port
from fedlora.server.sites.grpc.refusals import Refusals
from fedlora.server.sites.grpc.registry import RegistryService, one_run
from fedlora.server.sites.grpc.request_traces import RequestTraces
from fedlora.server.whole_run import Rounds
from fedlora.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server
from fedlora.v1.exchange_pb2_grpc import add_AdapterExchangeServiceServicer_to_server
from fedlora.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from fedlora.v1.session_pb2_grpc import add_SessionServiceServicer_to_server

logger = logging.getLogger(__name__)

# For some hundred sites.
_ENOUGH_OPEN_FILES = 1_024
WATCH_SECONDS = 5.0


def serve(
    rounds: Rounds,
    door: Door,
    *,
    check: Check,
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
    raise_open_files()
    with audited(folder, rounds.listener) as (listener, note):
        _serve(replace(rounds, listener=listener), door, check=check, opened=opened, note=note, traces=traces)


def _serve(
    rounds: Rounds,
    door: Door,
    *,
    check: Check,
    opened: Callable[[int], None],
    note: Callable[[Entry], None],
    traces: RequestTraces | None,
) -> None:
    """Serve; `note` is told of begin and end, for the audit log."""
    config, folder = rounds.run.config, rounds.run.folder
    authority = authority_of(door, folder)
    credentials = credentials_of(door, authority)
    refusals = Refusals(rounds.listener)
    gate = Gate(authority, run=config.run.name, refusals=refusals)
    run = RunServices(rounds, gate, check=check, traces=traces)

    def watch() -> None:
        run.look()
        refusals.tell()
        run.registry.look()

    def add_services(server: grpc.aio.Server) -> None:
        add_SessionServiceServicer_to_server(run.session, server)
        add_AdapterExchangeServiceServicer_to_server(run.transfer, server)
        shelf = one_run(run.registry, gate, run=config.run.name)
        add_RegistryServiceServicer_to_server(RegistryService(shelf, gate, rounds.listener), server)
        add_EnrolmentServiceServicer_to_server(EnrolmentService(gate, rounds.listener), server)

    run.disk.look()
    is_finished = False
    try:
        with (
            repeatedly(watch, seconds=WATCH_SECONDS),
            Port(
                door.address, credentials, add_services, gate=gate, is_ready=lambda: not why_not_writable(folder)
            ) as port,
            signals_heeded(run.stop),
            stop_requests_heeded(folder, run.stop),
        ):
            note(started_entry(door, port.number))
            opened(port.number)
            run.do_rounds()
            is_finished = True
    finally:
        run.disk.look()
        refusals.tell(is_over=True)
        note({"event": "stopped", "is_finished": is_finished})
    run.clear()


def started_entry(door: Door, port: int) -> Entry:
    """Return what the audit log has of a server's begin."""
    return {"event": "started", "version": version("fedlora"), "address": door.address, "port": port}


def raise_open_files() -> None:
    """Let this process have as many files and connections open as it may, and say how many those are."""
    most = open_files.raise_limit()
    level = logging.INFO if most >= _ENOUGH_OPEN_FILES else logging.WARNING
    logger.log(
        level, "this process may have %d files and connections open (ulimit -n), of sites at most %d", most, most // 2
    )


@contextmanager
def signals_heeded(stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the run at its next look."""

    def heed(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
