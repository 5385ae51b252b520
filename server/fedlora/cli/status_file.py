"""`status.json` in a server's run folder: what `fedlora server status` and `stop` read."""

import fcntl
import json
import math
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.files import write_file
from fedlora.common.messages import Score
from fedlora.common.run_folder import LOCK_FILE, STATUS_FILE
from fedlora.server.events import (
    EvaluationStarted,
    Event,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    UpdateArrived,
    Waiting,
)
from fedlora.server.report.numbers import perplexity
from fedlora.server.report.validation import best_of, validation_by_round
from fedlora.server.round_report import RoundReport

Status = dict[str, object]

_LEAST_SECONDS_BETWEEN = 0.5


@dataclass
class _Known:
    phase: str = "loading"
    round: int = 0
    waiting_for: str = ""
    sites: dict[str, dict[str, str]] = field(default_factory=dict)
    cohort: tuple[str, ...] = ()
    accepted: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    metric_name: str = "metric"
    last: RoundReport | None = None
    reports: list[RoundReport] = field(default_factory=list)
    validation: dict[int, Score] = field(default_factory=dict)
    totals: Counter[str] = field(default_factory=Counter)


class StatusFile:
    """Writes what is known of a run, at most twice a second; listens to the run's events, from any thread."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._path = folder / STATUS_FILE
        self._config = config
        self._port = 0
        self._known = _Known()
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
            if self._known.phase != "finished":
                self._known.phase = "stopped"
            self._is_over = True
        self._changed.set()
        self._thread.join()

    def listening(self, port: int) -> None:
        """Note the port that sites connect to."""
        with self._lock:
            self._port, self._known.phase = port, "waiting for sites"
        self._changed.set()

    def heard(self, event: Event) -> None:
        """Take an event of the run."""
        with self._lock:
            _take(self._known, event)
            if isinstance(event, RunStarted):
                # Imports torch, which the server has done before it has met its sites.
                from fedlora.server.outcome import metric_name

                self._known.metric_name = metric_name(self._path.parent)
        self._changed.set()

    def _write_changes(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            with self._lock:
                content, is_over = self._content(), self._is_over
            with suppress(StoreError):  # On a full disk the run itself says so.
                write_file(self._path, json.dumps(content, indent=2) + "\n")
            if is_over:
                return
            time.sleep(_LEAST_SECONDS_BETWEEN)

    def _content(self) -> Status:
        known = self._known
        last = known.last
        held_out = last.held_out if last is not None else None
        overall = held_out.overall if held_out is not None else None
        best = best_of(known.validation)
        aggregation = last.aggregation if last is not None else None
        return {
            "run": self._config.run.name,
            "pid": os.getpid(),
            "port": self._port,
            "phase": known.phase,
            "waiting_for": known.waiting_for,
            "round": known.round,
            "num_rounds": self._config.federation.rounds,
            "sites": dict(sorted(known.sites.items())),
            "cohort": list(known.cohort),
            "accepted": known.accepted,
            "refused": known.refused,
            "last_round": None if last is None else last.round,
            "metric_name": known.metric_name,
            "metric": None if overall is None else _finite(overall.metric),
            "perplexity": None if overall is None or not overall.num_tokens else _finite(perplexity(overall.loss)),
            "best_round": best,
            "best_validation_loss": None if best is None else known.validation[best].loss,
            "ended_early": last is not None and last.ended_early,
            "error_before": None if aggregation is None else _finite(aggregation.error_before),
            "error_after": None if aggregation is None else _finite(aggregation.error_after),
            "seconds": {} if last is None else dict(last.seconds),
            "totals": dict(known.totals),
        }


def read_status(folder: Path) -> Status:
    """Return what the server of a run folder last wrote, with `is_running`.

    Raises:
        StoreError: no server has run there.
    """
    path = folder / STATUS_FILE
    try:
        content: Status = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{folder}: no server has run there; expected the folder given to server start") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error})") from error
    return content | {"is_running": _is_held(folder / LOCK_FILE)}


def _finite(number: float) -> float | None:
    """Return a number as JSON has it, which knows no nan."""
    return number if math.isfinite(number) else None


def _is_held(lock: Path) -> bool:
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _take(known: _Known, event: Event) -> None:
    match event:
        case SiteChanged():
            known.sites[event.site] = {"state": event.state, "detail": event.detail}
        case Waiting():
            known.waiting_for = event.what
        case RunStarted():
            known.waiting_for = ""
            known.round = event.next_round
            _count(known, *event.reports)
        case RoundStarted():
            known.phase, known.round, known.waiting_for = "training", event.round, ""
            known.cohort, known.accepted, known.refused = event.cohort, list(event.recovered), {}
        case UpdateArrived():
            if event.reason:
                known.refused[event.client] = event.reason
            else:
                known.accepted.append(event.client)
        case EvaluationStarted():
            known.phase = "evaluating"
        case RoundEnded():
            _count(known, event.report)
            known.phase = "between rounds"


def _count(known: _Known, *reports: RoundReport) -> None:
    for report in reports:
        known.last = report
        known.totals.update(
            rounds=int(report.round > 0),
            accepted=len(report.clients),
            refused=len(report.refused),
            bytes_down=report.bytes_down,
            bytes_up=report.bytes_up,
        )
    known.reports += reports
    known.validation = validation_by_round(known.reports)
