"""What is known of a run at one moment, from the files in its folder."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic import TypeAdapter

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, StoreError, one_line
from fedlora.common.messages import SiteDescription
from fedlora.common.parsing import json_in
from fedlora.common.printable import printable
from fedlora.common.run_file import parse_toml
from fedlora.common.run_folder import (
    ADAPTER_FOLDER,
    AUDIT_FILE,
    BEST_FOLDER,
    LOCK_FILE,
    MANIFEST_FILE,
    PROCESSES_FILE,
    PUBLISHED_FOLDER,
    QUARANTINE_FOLDER,
    ROUNDS_FILE,
    RUN_FILE,
    SITES_FILE,
    STATUS_FILE,
)
from fedlora.dashboard.files import is_newest_withdrawn, known_rollback
from fedlora.dashboard.found_runs import REPORT_FILE
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.dashboard.rounds_tail import RoundsTail
from fedlora.server.disk.account import ProcessRecord, records_in
from fedlora.server.disk.published_folder import Rollback
from fedlora.server.disk.run_state import state_of
from fedlora.server.disk.status_reading import status_in
from fedlora.server.record.round_report import RoundReport
from fedlora.server.run_queue.store import is_in_store

_MOST_BYTES = 16 << 20
_SITES = TypeAdapter(dict[str, SiteDescription])

# What each part of the page is made of.
PARTS: Mapping[str, Sequence[str]] = {
    "now": (STATUS_FILE, ROUNDS_FILE, SITES_FILE, RUN_FILE, MANIFEST_FILE, PUBLISHED_FOLDER),
    "rounds": (ROUNDS_FILE, RUN_FILE, MANIFEST_FILE),
    "files": (ADAPTER_FOLDER, BEST_FOLDER, PUBLISHED_FOLDER, QUARANTINE_FOLDER, AUDIT_FILE, REPORT_FILE),
}


@dataclass(frozen=True)
class KnownRun:
    """A run at one moment.

    Attributes:
        name: the run's own, or the folder's where that is not known.
        state: one of `run_state.STATES`; of a simulation that is not at work and not over, "interrupted".
        reports: of the rounds that are over, as far as they were read.
        config: None where run.toml is missing or cannot be read.
        status: of a server's run what it last said; else empty.
        sites: what the sites said that they hold.
        worked: seconds of all processes.
        changed: when the run last wrote something of itself, in UTC; None where nobody knows.
        is_in_store: whether it is one of a server's with a store.
        rollback: to which adapter the run is rolled back, until a better one is published.
        faults: what of the folder cannot be read, in a line each.
    """

    name: str
    state: str
    is_running: bool
    config: RunConfig | None
    metric_name: str
    num_rounds: int
    reports: tuple[RoundReport, ...]
    status: Mapping[str, object] = field(default_factory=dict)
    sites: Mapping[str, SiteDescription] = field(default_factory=dict)
    worked: float = 0.0
    changed: datetime | None = None
    is_in_store: bool = False
    rollback: Rollback | None = None
    faults: tuple[str, ...] = ()


class RunReader:
    """Reads one run's folder, each time only what is new of the rounds. For several threads."""

    def __init__(self, folder: PlainFolder) -> None:
        self.folder = folder
        self._tail = RoundsTail(folder)
        self._lock = threading.Lock()

    def marks(self) -> dict[str, str]:
        """Return for each part of the page a text that changes whenever its files do; cheap."""
        is_running = str(self.folder.is_held(LOCK_FILE))
        return {
            part: hashlib.sha256("|".join([is_running, *map(self.folder.mark, names)]).encode()).hexdigest()[:16]
            for part, names in PARTS.items()
        }

    def known(self) -> KnownRun:
        """Return what is known of the run."""
        with self._lock:
            self._tail.catch_up()
            faults = []
            if self._tail.num_damaged:
                faults.append(f"{ROUNDS_FILE}: {self._tail.num_damaged:,} lines are no rounds, and left out.")
            if self._tail.is_cut:
                faults.append(f"{ROUNDS_FILE} is larger than is read here: later rounds are missing.")
            reports = tuple(self._tail.reports)
        return known_run(self.folder, reports, faults)


def known_run(folder: PlainFolder, reports: Sequence[RoundReport], faults: Sequence[str] = ()) -> KnownRun:
    """Return what is known of a run whose rounds have been read, all or the last; `faults` are what was found there."""
    config, config_fault = _config(folder)
    status, status_fault = _status(folder)
    rollback, rollback_fault = _rollback(folder)
    manifest = _json(folder, MANIFEST_FILE)
    processes = _processes(folder)
    is_running = folder.is_held(LOCK_FILE)
    last = reports[-1] if reports else None
    num_rounds = config.federation.rounds if config else last.round if last else 0
    state = state_of(status, is_running=is_running) if status else _state(last, num_rounds, is_running=is_running)
    return KnownRun(
        name=printable(config.run.name if config else status.get("run") or folder.path.name, most=200),
        state=state,
        is_running=is_running,
        config=config,
        metric_name=printable(manifest.get("metric", "metric"), most=60),
        num_rounds=num_rounds,
        reports=tuple(reports),
        status=status,
        sites=_sites(folder),
        worked=sum(record.seconds for record in processes),
        changed=_changed(folder, status, processes),
        is_in_store=is_in_store(folder.path),
        rollback=rollback,
        faults=tuple(fault for fault in (*faults, config_fault, status_fault, rollback_fault) if fault),
    )


def _state(last: RoundReport | None, num_rounds: int, *, is_running: bool) -> str:
    """Return in which state a simulation is, which says nothing of itself but its rounds."""
    if is_running:
        return "running" if last is not None else "starting"
    if last is not None and last.ended_early:
        return "ended early"
    return "finished" if last is not None and last.round >= num_rounds else "interrupted"


def _config(folder: PlainFolder) -> tuple[RunConfig | None, str]:
    """Return the run, or what is wrong with its file."""
    raw = folder.read(RUN_FILE, most_bytes=_MOST_BYTES)
    if raw is None:
        return None, ""
    try:
        return parse_toml(raw.decode("utf-8-sig"), origin=RUN_FILE, aggregates_elsewhere=True), ""
    except (ConfigError, UnicodeDecodeError) as error:
        return None, f"{RUN_FILE} cannot be read: {one_line(error)}"


def _status(folder: PlainFolder) -> tuple[Mapping[str, object], str]:
    raw = folder.read(STATUS_FILE, most_bytes=_MOST_BYTES)
    if raw is None:
        return {}, ""
    try:
        return status_in(raw, origin=STATUS_FILE), ""
    except StoreError as error:
        return {}, one_line(error)


def _rollback(folder: PlainFolder) -> tuple[Rollback | None, str]:
    """Return what is rolled back, while that stands, or what is wrong with its record."""
    try:
        rollback = known_rollback(folder)
    except StoreError as error:
        return None, f"{one_line(error)}. Until then no published adapter is offered here."
    return (rollback if rollback is not None and is_newest_withdrawn(folder, rollback) else None), ""


def _json(folder: PlainFolder, name: str) -> Mapping[str, object]:
    try:
        found = json_in(folder.read(name, most_bytes=_MOST_BYTES) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _sites(folder: PlainFolder) -> Mapping[str, SiteDescription]:
    try:
        return _SITES.validate_json(folder.read(SITES_FILE, most_bytes=_MOST_BYTES) or b"{}")
    except ValueError:
        return {}


def _processes(folder: PlainFolder) -> Sequence[ProcessRecord]:
    try:
        return records_in(folder.read(PROCESSES_FILE, most_bytes=_MOST_BYTES) or b"[]")
    except ValueError:
        return ()


def _changed(folder: PlainFolder, status: Mapping[str, object], processes: Sequence[ProcessRecord]) -> datetime | None:
    """Return when the run last wrote of itself."""
    times = [record.last_seen for record in processes]
    found = folder.stat(ROUNDS_FILE)
    # A file's time and a status may say anything.
    with suppress(ValueError, OverflowError, OSError):
        if found is not None:
            times.append(datetime.fromtimestamp(found.st_mtime, UTC))
    with suppress(ValueError, OverflowError):
        written = datetime.fromisoformat(str(status.get("written", "")))
        if written.tzinfo is not None:
            times.append(written.astimezone(UTC))
    return max(times, default=None)
