"""report.html while the run goes on: over the rounds so far, beside them, in a small share of the time."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from fedlora.common.errors import StoreError
from fedlora.server.record.events import Event, RoundEnded, RunStarted
from fedlora.server.record.round_report import RoundReport

logger = logging.getLogger(__name__)

# A run that is over sooner has its report at its end alone.
_LEAST_SECONDS_BETWEEN = 5.0
# A report of many rounds takes seconds: between two there is so many times what the last one took.
_TIMES_ITS_COST = 30.0


class RunningReport:
    """Has the report written after rounds in a thread of its own, some seconds apart; no round waits for it."""

    def __init__(
        self, write: Callable[[Sequence[RoundReport]], None], *, least_seconds: float = _LEAST_SECONDS_BETWEEN
    ) -> None:
        """`write` writes it over the rounds that it is given."""
        self._write = write
        self._least_seconds = self._pause = least_seconds
        self._reports: list[RoundReport] = []
        self._has_news = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="report", daemon=True)

    def __enter__(self) -> "RunningReport":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._has_news.set()
        self._thread.join()

    def heard(self, event: Event) -> None:
        """Take what a round adds to the report; a Listener."""
        if isinstance(event, RunStarted):
            self._reports = list(event.reports)
        elif isinstance(event, RoundEnded):
            self._reports.append(event.report)
            self._has_news.set()

    def _write_on(self) -> None:
        while True:
            self._has_news.wait()
            if self._is_over.wait(self._pause):
                return
            self._has_news.clear()
            began = time.monotonic()
            try:
                self._write(tuple(self._reports))
            except StoreError as error:
                logger.warning("%s", error)
            # No report is worth a run: at its end the error shows itself.
            except Exception:
                logger.exception("report.html is not written")
            self._pause = max(self._least_seconds, _TIMES_ITS_COST * (time.monotonic() - began))
