"""The page that lists runs: of each its state, round, metric and last change, without reading all of its rounds."""

import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedlora.common.printable import printable
from fedlora.common.run_folder import LOCK_FILE, MANIFEST_FILE, ROUNDS_FILE, RUN_FILE, STATUS_FILE
from fedlora.dashboard.found_runs import FoundRuns
from fedlora.dashboard.known_run import KnownRun, known_run
from fedlora.dashboard.now import state_words, time_words
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.dashboard.rounds_tail import last_round
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.wording import UNKNOWN, score_text
from fedlora.server.run_queue.store import QUEUE_FILE

logger = logging.getLogger(__name__)

_FILES = (RUN_FILE, STATUS_FILE, ROUNDS_FILE, MANIFEST_FILE)
_NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class ListedRun:
    """A run in words.

    Attributes:
        place: of its folder below the one that is looked at.
        state: a word for the page's colours.
    """

    place: str
    name: str
    state: str
    state_words: str
    metric: str
    changed: datetime | None

    @property
    def changed_words(self) -> str:
        """When it last wrote something, in UTC."""
        return time_words(self.changed)


class RunList:
    """Lists the runs of a folder, and reads of each only what has changed. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, ListedRun]] = {}

    def rows(self, found: FoundRuns) -> Sequence[ListedRun]:
        """Return a row for each run: those at work first, then the one that changed last."""
        with self._lock:
            known = {}
            for place, folder in found.runs.items():
                mark = _mark(folder)
                before = self._known.get(place)
                known[place] = before if before and before[0] == mark else (mark, _listed(place, folder))
            self._known = known
            rows = [row for _, row in known.values()]
        rows.sort(key=lambda row: row.changed or _NEVER, reverse=True)
        return sorted(rows, key=lambda row: row.state not in ("running", "waiting", "starting"))


def list_marks(found: FoundRuns) -> Mapping[str, str]:
    """Return a text that changes whenever a run of the list does, or what waits."""
    marks = [f"{place}|{_mark(folder)}" for place, folder in found.runs.items()] + sorted(found.comparisons)
    marks += [f"{place}|{folder.mark(QUEUE_FILE)}" for place, folder in found.stores.items()]
    return {"list": hashlib.sha256("\n".join(marks).encode(errors="surrogateescape")).hexdigest()[:16]}


def _mark(folder: PlainFolder) -> str:
    return "|".join([*map(folder.mark, _FILES), str(folder.is_held(LOCK_FILE))])


def _listed(place: str, folder: PlainFolder) -> ListedRun:
    """Return a run's row; one that cannot be made says so."""
    try:
        return _read(place, folder)
    # A folder may hold anything, and one run that cannot be read is no reason to list none.
    except Exception:
        logger.exception("%s: its row in the list of runs cannot be made", folder.path)
        name = printable(folder.path.name, most=200)
        return ListedRun(place, name, "failed", "cannot be read; the log of this command says why", UNKNOWN, None)


def _read(place: str, folder: PlainFolder) -> ListedRun:
    last = last_round(folder)
    run = known_run(folder, () if last is None else (last,))
    return ListedRun(place, run.name, run.state, state_words(run), _metric(run, last), run.changed)


def _metric(run: KnownRun, last: RoundReport | None) -> str:
    if last is None or last.held_out is None:
        return UNKNOWN
    return f"{run.metric_name} {score_text(last.held_out.overall.metric, run.metric_name)}"
