"""The runs in a folder: itself, or those that lie below it, at most so deep."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fedlora.common.run_folder import ROUNDS_FILE, RUN_FILE, STATUS_FILE
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.server.run_queue.store import QUEUE_FILE

REPORT_FILE = "report.html"
_COMPARISON_FILE = "comparison.json"
_MOST_DEPTH = 4
_MOST_FOLDERS = 2_000
MOST_RUNS = 300


@dataclass(frozen=True)
class FoundRuns:
    """Folders by their place below the folder that was looked at, as `a/b`; empty for itself.

    Attributes:
        comparisons: what `fedlora compare` has written.
        stores: servers' folders of many runs, each with its queue.
        is_cut: whether there are more than are looked for.
    """

    runs: dict[str, PlainFolder]
    comparisons: dict[str, PlainFolder]
    stores: dict[str, PlainFolder] = field(default_factory=dict)
    is_cut: bool = False


def find_runs(folder: PlainFolder) -> FoundRuns:
    """Return the runs in a folder, and the comparisons."""
    runs: dict[str, PlainFolder] = {}
    comparisons: dict[str, PlainFolder] = {}
    stores: dict[str, PlainFolder] = {}
    for count, (place, each) in enumerate(_walk(folder, ())):
        if count >= _MOST_FOLDERS or len(runs) >= MOST_RUNS:
            return FoundRuns(runs, comparisons, stores, is_cut=True)
        if is_run(each):
            runs[place] = each
        elif each.has_file(_COMPARISON_FILE) and each.has_file(REPORT_FILE):
            comparisons[place] = each
        elif each.has_file(QUEUE_FILE):
            stores[place] = each
    return FoundRuns(runs, comparisons, stores)


def is_run(folder: PlainFolder) -> bool:
    """Return whether a folder is a run's; a server that has met no site yet has only said how it is."""
    return any(folder.has_file(name) for name in (RUN_FILE, ROUNDS_FILE, STATUS_FILE))


def _walk(folder: PlainFolder, below: tuple[str, ...]) -> Iterator[tuple[str, PlainFolder]]:
    yield "/".join(below), folder
    if is_run(folder) or len(below) == _MOST_DEPTH:
        return
    for name in folder.folders():
        # What has no picture in an address or on a page is nobody's run.
        if name.isprintable() and not name.startswith("."):
            yield from _walk(folder.below(name), (*below, name))
