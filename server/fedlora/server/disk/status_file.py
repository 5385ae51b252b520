"""`status.json` in a server's run folder: how it is written and read."""

import dataclasses
import json
import logging
import math
import os
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from fedlora.common.config import RunConfig
from fedlora.common.errors import DiskFull, FedloraError, StoreError, one_line
from fedlora.common.files import write_file
from fedlora.common.locks import is_held
from fedlora.common.parsing import json_in
from fedlora.common.run_folder import LOCK_FILE, MANIFEST_FILE, STATUS_FILE
from fedlora.server.disk.account import process_records, seconds_worked
from fedlora.server.disk.audit import AuditLog
from fedlora.server.disk.published_folder import published_in, read_rollback, stands
from fedlora.server.disk.recorded_identity import recorded_identity
from fedlora.server.disk.run_state import last_word, state_of
from fedlora.server.disk.status_reading import checked_status
from fedlora.server.disk.withheld import withheld_rounds
from fedlora.server.record.events import Event, RunStarted, SiteChanged, UpdateArrived
from fedlora.server.record.running_summary import RunningSummary, ended
from fedlora.server.report.numbers import perplexity

logger = logging.getLogger(__name__)

Status = dict[str, object]

_LEAST_SECONDS_BETWEEN = 0.5
# The code of the error in which a run ends that was asked to.
_STOPPED = "stopped"
# A file takes at least so much of a disk.
_BLOCK_BYTES = 4096
_TOTALS = ("rounds", "accepted", "refused", "bytes_down", "bytes_up")


class StatusFile:
    """Writes the summary of a run, at most twice a second; a picture of it as the live view is another."""

    def __init__(
        self, folder: Path, config: RunConfig, *, known: RunningSummary | None = None, identity: Path | None = None
    ) -> None:
        """Of a run that goes on, `known` is the summary before the first event.

        `identity` is the folder of the authority and the sites' records; None where there are no certificates.
        """
        self._path = folder / STATUS_FILE
        self._config = config
        self._identity = recorded_identity(folder, identity)
        self._address, self._port = "", 0
        self._audit = AuditLog(folder)
        self._metric_name = _metric_name(folder)
        self._failure = ""
        self._heard: dict[str, str] = {}
        self._summary = known or RunningSummary()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._write_changes, name="status", daemon=True)

    def __enter__(self) -> "StatusFile":
        self._changed.set()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._summary = ended(self._summary)
            self._failure = one_line(error) if isinstance(error, FedloraError) and error.code != _STOPPED else ""
            self._is_over = True
        self._changed.set()
        self._thread.join()

    def listening(self, port: int, *, address: str = "") -> None:
        """Note the port that sites connect to, and the address with it, HOST:PORT."""
        with self._lock:
            self._address, self._port = address, port
        self._changed.set()

    def show(self, event: Event, _before: RunningSummary, summary: RunningSummary) -> None:
        """Write what is known after an event of the run."""
        with self._lock:
            self._summary = summary
            match event:
                case RunStarted():
                    self._metric_name = _metric_name(self._path.parent)
                case SiteChanged(site=site) | UpdateArrived(client=site):
                    self._heard[site] = _now()
        self._changed.set()

    def _write_changes(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            with self._lock:
                content, is_over = self._content(), self._is_over
            try:
                write_file(self._path, json.dumps(content, indent=2) + "\n")
            except DiskFull:
                _write_over(self._path, content)
            except StoreError as error:
                logger.warning("%s", error)
            if is_over:
                return
            time.sleep(_LEAST_SECONDS_BETWEEN)

    def _content(self) -> Status:
        known = self._summary
        last, best = known.last, known.validation.best
        overall = None if last is None or last.held_out is None else last.held_out.overall
        aggregation = None if last is None else last.aggregation
        head = self._audit.head()
        return {
            "run": self._config.run.name,
            "disk": None if known.disk is None else dataclasses.asdict(known.disk),
            "audit": {"lines": head.num_lines, "head": head.sha256},
            "pid": os.getpid(),
            "port": self._port,
            "address": self._address,
            "identity": self._identity,
            "written": _now(),
            "phase": self._phase(),
            "failure": self._failure,
            "waiting_for": known.waiting_for,
            "round": known.round,
            "num_rounds": self._config.federation.rounds,
            "sites": {
                name: {"state": state, "detail": detail, "heard": self._heard.get(name, "")}
                for name, (state, detail) in sorted(known.sites.items())
            },
            "cohort": list(known.cohort),
            "accepted": list(known.accepted),
            "refused": dict(known.refused),
            "last_round": None if last is None else last.round,
            "metric_name": self._metric_name,
            "metric": None if overall is None else _finite(overall.metric),
            "perplexity": None if overall is None or not overall.num_tokens else _finite(perplexity(overall.loss)),
            "best_round": None if best is None else best[1],
            "best_validation_loss": None if best is None else best[0],
            "ended_early": last is not None and last.ended_early,
            "error_before": None if aggregation is None else _finite(aggregation.error_before),
            "error_after": None if aggregation is None else _finite(aggregation.error_after),
            "seconds": {} if last is None else dict(last.seconds),
            "totals": {} if last is None else {name: getattr(known.totals, name) for name in _TOTALS},
        }

    def _phase(self) -> str:
        """Return what is going on, in the words of a server: it opens its port before there is a round."""
        if self._summary.phase == "starting":
            return "waiting for sites" if self._port else "loading"
        return "training" if self._summary.phase == "averaging" else self._summary.phase


def read_status(folder: Path) -> Status:
    """Return what the server of a run folder last wrote, with what it is from outside.

    That is `is_running`, `state`, the time of its `last_word`, and `seconds_of_run`, the wall time of all processes;
    `rolled_back`, the adapter that is offered in place of newer ones, and `not_published`, by round why.

    Raises:
        StoreError: no server has run there, or the file is damaged.
    """
    content = checked_status(folder)
    is_running = is_held(folder / LOCK_FILE)
    rollback = read_rollback(folder) if stands(published_in(folder), read_rollback(folder)) else None
    seen = max((record.last_seen for record in process_records(folder)), default=None)
    return content | {
        "is_running": is_running,
        "state": state_of(content, is_running=is_running),
        "last_word": last_word(content, seen),
        "seconds_of_run": seconds_worked(folder),
        "rolled_back": None if rollback is None else dataclasses.asdict(rollback),
        "not_published": {str(number): why for number, why in withheld_rounds(folder).items()},
    }


def is_served(folder: Path) -> bool:
    """Return whether a server is at work on the run in a folder."""
    try:
        return (folder / STATUS_FILE).exists() and is_held(folder / LOCK_FILE)
    except StoreError:
        return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _metric_name(folder: Path) -> str:
    """Return the name of the run's metric, which its manifest tells once it has met its sites."""
    try:
        return str(json_in((folder / MANIFEST_FILE).read_bytes())["metric"])
    except (OSError, ValueError, KeyError, TypeError):
        return "metric"


def _write_over(path: Path, content: Status) -> None:
    """Write a status into the room that the former one has on a full disk: as much of it as fits there."""
    with suppress(OSError), open(path, "r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        shorter = content | {"sites": {}, "cohort": [], "accepted": [], "refused": {}}
        for raw in (json.dumps(each).encode() + b"\n" for each in (content, shorter)):
            if len(raw) <= max(size, _BLOCK_BYTES):
                file.write(raw.ljust(size))
                return


def _finite(number: float) -> float | None:
    """Return a number as JSON has it, which knows no nan."""
    return number if math.isfinite(number) else None
