"""A run's trackers, each in a thread of its own: no round waits for one, and none ends a run."""

import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from fedlora.common.config import RunConfig
from fedlora.common.errors import one_line
from fedlora.common.run_folder import MANIFEST_FILE
from fedlora.server.record.events import Event, RoundEnded, RunStarted
from fedlora.server.record.round_report import RoundReport
from fedlora.trackers.numbers import flat_settings, numbers_of
from fedlora.trackers.tracker import OpenTracker, TrackedRun, Tracker

logger = logging.getLogger(__name__)

# Somebody else's server may be slow, or never answer.
_MOST_SECONDS_AT_THE_END = 60.0


class Tracking:
    """Gives each round to the trackers as it ends, and says once of each that fails.

    Attributes:
        failures: what was said.
    """

    def __init__(
        self, trackers: Mapping[str, OpenTracker], config: RunConfig, folder: Path, *, say: Callable[[str], None]
    ) -> None:
        """`say` is told of a tracker that fails, in a line, from any thread."""
        self.failures: list[str] = []
        self._config = config
        self._folder = folder
        self._say = say
        self._threads = [_Tracked(name, open_tracker, self._fail) for name, open_tracker in trackers.items()]
        self._is_finished = False

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.end(is_finished=self._is_finished)
        for thread in self._threads:
            thread.wait(_MOST_SECONDS_AT_THE_END)

    def heard(self, event: Event) -> None:
        """Take what is to be tracked; a Listener."""
        match event:
            case RunStarted() if self._threads:
                self._is_finished = event.is_over
                run = TrackedRun(
                    id=str(json.loads((self._folder / MANIFEST_FILE).read_bytes())["run_id"]),
                    name=self._config.run.name,
                    folder=self._folder,
                    settings=flat_settings(self._config.model_dump(mode="json")),
                )
                for thread in self._threads:
                    thread.begin(run, event.reports)
            case RoundEnded(report=report):
                self._is_finished = report.ended_early or report.round == self._config.federation.rounds
                for thread in self._threads:
                    thread.take(report)

    def _fail(self, line: str) -> None:
        self.failures.append(line)
        self._say(line)


class _Tracked:
    """One tracker in its thread."""

    def __init__(self, name: str, open_tracker: OpenTracker, fail: Callable[[str], None]) -> None:
        self._name = name
        self._open = open_tracker
        self._fail = fail
        self._reports: queue.SimpleQueue[RoundReport | None] = queue.SimpleQueue()
        self._is_finished = False
        self._thread: threading.Thread | None = None

    def begin(self, run: TrackedRun, reports: tuple[RoundReport, ...]) -> None:
        for report in reports:
            self._reports.put(report)
        self._thread = threading.Thread(target=self._work, args=(run,), name=f"track {self._name}", daemon=True)
        self._thread.start()

    def take(self, report: RoundReport) -> None:
        self._reports.put(report)

    def end(self, *, is_finished: bool) -> None:
        self._is_finished = is_finished
        self._reports.put(None)

    def wait(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._fail(f"--track {self._name}: did not end within {seconds:.0f} s; its last rounds may be missing")

    def _work(self, run: TrackedRun) -> None:
        try:
            tracker = self._open(run)
            self._write_on(tracker)
            tracker.close(is_finished=self._is_finished)
        # Somebody else's code over somebody else's network: no tracker is worth a run.
        except Exception as error:
            logger.debug("--track %s", self._name, exc_info=True)
            self._fail(
                f"--track {self._name} failed ({type(error).__name__}: {one_line(error)}); the run goes on without it"
            )

    def _write_on(self, tracker: Tracker) -> None:
        last, before = tracker.last_round, None
        while (report := self._reports.get()) is not None:
            if report.round > last:
                for round, numbers in numbers_of(report, before):
                    tracker.write(round, numbers)
            before = report
