"""A server that lasts: one port and one identity over the runs of a store, one after another, until it is stopped."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc.aio

from fedlora.common.config import Occasion, RunConfig, idle_settings
from fedlora.common.errors import FedloraError, StoreError, one_line
from fedlora.common.folder_version import STORE_FOLDER, bring_up_to_date
from fedlora.common.locks import hold
from fedlora.common.repeatedly import repeatedly
from fedlora.common.run_folder import LOCK_FILE, STOP_FILE
from fedlora.server.deployment import WATCH_SECONDS, raise_open_files, signals_heeded, started_entry
from fedlora.server.disk.audited import audited
from fedlora.server.disk.registry import Registry
from fedlora.server.disk.space import why_not_writable
from fedlora.server.disk.stop_request import stop_requests_heeded
from fedlora.server.door import Door, authority_of, credentials_of
from fedlora.server.record.events import Event, Listener, ignore
from fedlora.server.run_queue.queue import QueuedRun, RunQueue, State
from fedlora.server.run_queue.store import RunStore, config_of, last_round
from fedlora.server.run_services import Check, RunServices
from fedlora.server.sites.grpc.enrolment import EnrolmentService
from fedlora.server.sites.grpc.gate import Gate
from fedlora.server.sites.grpc.grid import RunStopped
from fedlora.server.sites.grpc.hall import Hall, PresentRun
from fedlora.server.sites.grpc.port import Port
from fedlora.server.sites.grpc.refusals import Refusals
from fedlora.server.sites.grpc.registry import RegistryService
from fedlora.server.sites.grpc.request_traces import RequestTraces
from fedlora.server.whole_run import Rounds, Run, whole_run
from fedlora.trackers import OpenTracker
from fedlora.v1.enrolment_pb2_grpc import add_EnrolmentServiceServicer_to_server
from fedlora.v1.exchange_pb2_grpc import add_AdapterExchangeServiceServicer_to_server
from fedlora.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from fedlora.v1.session_pb2_grpc import add_SessionServiceServicer_to_server

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.3
_RETRY_SECONDS = 2.0


@dataclass(frozen=True)
class ShownRun:
    """Who looks on at a run.

    Attributes:
        listener: gives what is told of all that happens, for as long as the run is at work.
        traces: hear of each request to a site.
    """

    listener: AbstractContextManager[Listener]
    traces: RequestTraces | None = None


Shown = Callable[[RunConfig, Path, int], ShownRun]
"""Gives who looks on at a run, by its run file, its folder and the port's number."""


def serve_store(
    store: RunStore,
    door: Door,
    *,
    check: Check,
    shown: Shown,
    command: str,
    opened: Callable[[int], None],
    trackers: Mapping[str, OpenTracker] | None = None,
    heard: Listener = ignore,
) -> None:
    """Do the runs of a store as they come, until SIGTERM, SIGINT or `server stop`; the same call goes on.

    Args:
        command: goes into the manifests.
        opened: called with the port's number once sites can connect.
        trackers: of each run, what opens them by name.
        heard: hears what happens at the port, with or without a run.

    Raises:
        FedloraError: the store or the port cannot be used, or another server is at work on it.
    """
    raise_open_files()
    with _claimed(store.folder), audited(store.folder, heard) as (listener, note):
        authority = authority_of(door, store.folder)
        credentials = credentials_of(door, authority)
        server = _StoreServer(
            store, check=check, shown=shown, command=command, listener=listener, trackers=trackers or {}
        )
        refusals = Refusals(server.heard)
        gate = Gate(authority, run=None, refusals=refusals)
        hall = Hall(gate, store=store.folder)

        def add_services(port: grpc.aio.Server) -> None:
            add_SessionServiceServicer_to_server(hall, port)
            add_AdapterExchangeServiceServicer_to_server(hall.exchange, port)
            add_RegistryServiceServicer_to_server(RegistryService(server.shelf(gate), gate, server.heard), port)
            add_EnrolmentServiceServicer_to_server(EnrolmentService(gate, server.heard), port)

        def watch() -> None:
            server.look()
            refusals.tell()

        try:
            with (
                repeatedly(watch, seconds=WATCH_SECONDS),
                Port(
                    door.address,
                    credentials,
                    add_services,
                    gate=gate,
                    is_ready=lambda: not why_not_writable(store.folder),
                ) as port,
                signals_heeded(server.stop),
                stop_requests_heeded(store.folder, server.stop),
            ):
                note(started_entry(door, port.number))
                opened(port.number)
                server.do_runs(hall, gate, port.number)
        finally:
            refusals.tell(is_over=True)
            note({"event": "stopped"})


class _StoreServer:
    """Takes one run after another, and knows which is at work."""

    def __init__(
        self,
        store: RunStore,
        *,
        check: Check,
        shown: Shown,
        command: str,
        listener: Listener,
        trackers: Mapping[str, OpenTracker],
    ) -> None:
        self._store = store
        self._check = check
        self._shown = shown
        self._command = command
        self._trackers = trackers
        self._listener = listener
        self._is_stopping = threading.Event()
        self._lock = threading.Lock()
        self._at_work: tuple[RunServices, Listener] | None = None
        self._hall: Hall | None = None
        self._registries: dict[str, Registry] = {}

    def heard(self, event: Event) -> None:
        """Tell the store's own listener, and the run's at work, what happens at the port."""
        self._listener(event)
        if (at_work := self._at_work) is not None:
            at_work[1](event)

    def look(self) -> None:
        """Look after the run at work, and after what an operator has rolled back in any."""
        if (at_work := self._at_work) is not None:
            at_work[0].look()
        for registry in tuple(self._registries.values()):
            registry.look()

    def stop(self) -> None:
        """End the run at work at its next look, and take no more."""
        self._is_stopping.set()
        if (at_work := self._at_work) is not None:
            at_work[0].stop(more_to_come=self._leave_hall())

    def _leave_hall(self) -> bool:
        """Send nobody more to the run at work, and return whether the server stays for others.

        Before the sites hear that the run ends: they come back at once.
        """
        if self._hall is not None:
            self._hall.present = None
        return not self._is_stopping.is_set()

    def do_runs(self, hall: Hall, gate: Gate, port: int) -> None:
        """Do the runs of the queue as they come, until `stop`."""
        self._hall, is_idle = hall, False
        while not self._is_stopping.is_set():
            run = self._taken()
            if run is None:
                if not is_idle:
                    logger.info("no run waits; fedlora runs submit RUN.toml --store %s", self._store.folder)
                is_idle = True
                self._is_stopping.wait(_LOOK_SECONDS)
                continue
            is_idle = False
            self._do(run, hall, gate, port)

    def _taken(self) -> QueuedRun | None:
        """Return the run that is to be done, which is "running" from here on; None where none waits."""
        found: list[QueuedRun | None] = []

        def take(queue: RunQueue) -> RunQueue:
            found.append(run := queue.next())
            return queue if run is None else queue.with_state(run.name, "running")

        return found[-1] if self._changed(take) else None

    def _changed(self, how: Callable[[RunQueue], RunQueue]) -> bool:
        """Change the queue, as soon as its disk allows; return whether that was done before the server was stopped."""
        is_said = False
        while True:
            try:
                self._store.change(how)
            except StoreError as error:
                if not is_said:
                    logger.error("the queue waits: %s", error)
                is_said = True
                if self._is_stopping.wait(_RETRY_SECONDS):
                    return False
            else:
                return True

    def _do(self, queued: QueuedRun, hall: Hall, gate: Gate, port: int) -> None:
        """Do one run to its end, whatever that is, and note it."""
        name, asked_to_stop = queued.name, threading.Event()
        with self._lock:
            # The one at work has another than was shown of it while it was over.
            self._registries.pop(name, None)
        logger.info("%s begins", name)
        state, detail = self._ended(queued, hall, gate, port, asked_to_stop)
        if state == "running":
            logger.info("%s is cut off; the same start command goes on with it", name)
            return
        goes_on = "; submitted again, it goes on" if state == "stopped" else ""
        logger.info("%s is %s%s%s", name, state, f": {detail}" if detail else "", goes_on)
        self._changed(lambda queue: queue.with_state(name, state, detail=detail))

    def _ended(
        self, queued: QueuedRun, hall: Hall, gate: Gate, port: int, asked_to_stop: threading.Event
    ) -> tuple[State, str]:
        """Do one run, and return how it has ended, and why where it has failed."""
        try:
            config = config_of(queued)
            folder = self._store.run_folder(queued.name)
            shown = self._shown(config, folder, port)

            def engine(rounds: Rounds) -> None:
                self._engine(rounds, hall, gate.for_run(queued.name), asked_to_stop, traces=shown.traces)

            notes = idle_settings(config, Occasion("server"))
            run = Run(config, folder, config.federation.sites, self._command, notes, trackers=self._trackers)
            whole_run(run, engine, shown=shown.listener)
        except RunStopped:
            was_cut_off = self._is_stopping.is_set() and not asked_to_stop.is_set()
            return ("running" if was_cut_off else "stopped"), ""
        except FedloraError as error:
            return "failed", one_line(error)
        except Exception:
            # A bug in one run must not keep the others from being done.
            logger.exception("%s has failed; this is a bug in fedlora", queued.name)
            return "failed", "a bug in fedlora; see the log"
        return "finished", ""

    def _engine(
        self,
        rounds: Rounds,
        hall: Hall,
        gate: Gate,
        asked_to_stop: threading.Event,
        *,
        traces: RequestTraces | None,
    ) -> None:
        """Do the rounds of the run that is claimed, over the sites that are in the hall."""
        config, folder = rounds.run.config, rounds.run.folder
        with audited(folder, rounds.listener) as (listener, note):
            services = RunServices(replace(rounds, listener=listener), gate, check=self._check, traces=traces)
            with self._lock:
                self._registries[config.run.name] = services.registry
            services.disk.look()
            note({"event": "run begins", "run": config.run.name})
            self._at_work = services, listener
            present = PresentRun(gate, services.session, services.transfer)
            # Of one that has no round left nobody need be asked; its last adapter may be left to be published.
            if last_round(folder) < config.federation.rounds:
                hall.present = present
            if self._is_stopping.is_set():
                self.stop()

            def stop() -> None:
                asked_to_stop.set()
                services.stop(more_to_come=self._leave_hall())

            try:
                with stop_requests_heeded(folder, stop):
                    services.do_rounds(at_end=self._leave_hall)
                services.clear()
            finally:
                self._at_work = None
                services.stop(more_to_come=self._leave_hall())
                present.calls.end()
                services.disk.look()
                note({"event": "run ends", "run": config.run.name})

    def shelf(self, gate: Gate) -> Callable[[str], tuple[Registry, Gate] | None]:
        """Return what gives the registries of the store's runs, also of those that are over or wait to go on."""

        def find(name: str) -> tuple[Registry, Gate] | None:
            runs = {run.name: run for run in self._store.queue().runs}
            begun = [each for each in runs if runs[each].state != "waiting" or self._store.run_folder(each).is_dir()]
            at_work = next((each for each in begun if runs[each].state == "running"), "")
            taken = name or at_work or next(reversed(begun), "")
            if taken not in begun:
                return None
            with self._lock:
                if taken not in self._registries:
                    if runs[taken].state == "running":
                        return None  # Whoever is at it is about to open its own.
                    registry = Registry(self._store.run_folder(taken), check=self._check)
                    registry.close(is_finished=runs[taken].state == "finished", linger_seconds=0.0)
                    self._registries[taken] = registry
                return self._registries[taken], gate.for_run(taken)

        return find


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Hold a store meanwhile.

    Raises:
        StoreError: another server is at work on it, or it cannot be written.
    """
    try:
        file = open(folder / LOCK_FILE, "wb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be used ({error.strerror}); choose another --store") from error
    with file:
        try:
            hold(file)
        except BlockingIOError as error:
            raise StoreError(
                f"{folder}: another server is at work on it; stop it first, or choose another --store"
            ) from error
        (folder / STOP_FILE).unlink(missing_ok=True)
        for line in bring_up_to_date(folder, STORE_FOLDER, is_new=False):
            logger.warning("%s", line)
        yield
