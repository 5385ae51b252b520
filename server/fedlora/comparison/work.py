"""Whoever works on a comparison takes one run after another that nobody else has: python -m fedlora.comparison.work DIR

DIR/run.toml, grid.json       what was asked for
DIR/comparison.lock           held by who writes these, or the files that tell what was found
DIR/runs/VARIANT/draw-NN/     a run's folder; beside it
DIR/runs/VARIANT/draw-NN.lock     held by who does it
DIR/runs/VARIANT/draw-NN.json     what it gave, once it is over

Any number of processes share a comparison, also those of several commands; one that dies leaves its run to the others,
which go on with it where it stood.
"""

import math
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import fmean

from fedlora.common.codec import Codec
from fedlora.common.config import RunConfig
from fedlora.common.errors import FedloraError, StoreError, one_line
from fedlora.common.files import TEMPORARY_SUFFIX, write_file
from fedlora.common.locks import held, hold, is_held
from fedlora.common.run_file import differences, load_run, to_toml
from fedlora.common.run_folder import RUN_FILE
from fedlora.comparison.grid import CODEC as GRIDS
from fedlora.comparison.grid import Cell, Grid, combinations, final_cells, spelled_as, tuning_cells, what_lacks
from fedlora.comparison.results import RunResult
from fedlora.models.bitsandbytes_door import spare_bitsandbytes

GRID_FILE = "grid.json"
LOCK_FILE = "comparison.lock"
_PAUSE_SECONDS = 1.0

_RESULTS = Codec(RunResult)

Chosen = Mapping[str, Mapping[str, str]]
"""By variant's name the values that it has chosen, by key."""


def begin(folder: Path, base: RunConfig, grid: Grid) -> None:
    """Write what is asked for into a folder, unless it stands there; what an error ended there is tried again.

    More may be asked for later, in which all has its place that is there: draws, methods, references, values.

    Raises:
        StoreError: the folder holds something else, or another comparison, or cannot be written.
    """
    _require_own(folder)
    with held(folder / LOCK_FILE):
        _require_own(folder)
        if (folder / GRID_FILE).is_file():
            before_base, before = read(folder)
            if found := differences(before_base, base):
                key, (one, other) = next(iter(found.items()))
                raise StoreError(
                    f"{folder} holds another comparison: {key} is {one!r} there, {other!r} here; choose --out"
                )
            if lacking := what_lacks(grid, before):
                raise StoreError(f"{folder} holds another comparison, {lacking}; ask for that too, or choose --out")
            grid = spelled_as(grid, before)
            forget_failures(folder)
        write_file(folder / RUN_FILE, to_toml(base))
        write_file(folder / GRID_FILE, GRIDS.dump(grid) + "\n")


def _require_own(folder: Path) -> None:
    """Check that a folder holds a comparison, or what one left that was cut off when it began, or nothing.

    Raises:
        StoreError: it holds something else.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"--out {folder}: cannot be read ({error.strerror}); choose another folder") from error
    # Without the lock, which comes first, a run file is somebody's own.
    left = {RUN_FILE, LOCK_FILE} if LOCK_FILE in names else set()
    if GRID_FILE not in names and {name for name in names if not name.endswith(TEMPORARY_SUFFIX)} - left:
        raise StoreError(f"{folder} holds something that is no comparison; choose a new folder with --out")


def read(folder: Path) -> tuple[RunConfig, Grid]:
    """Return the run file and the grid of a comparison.

    Raises:
        FedloraError: there is none, or it is damaged.
    """
    path = folder / GRID_FILE
    try:
        grid = GRIDS.load(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: no comparison, or a damaged one; restore it, or choose another folder") from error
    return load_run(folder / RUN_FILE), grid


def result(folder: Path, cell: Cell) -> RunResult | None:
    """Return what a cell has given; None while it is not over."""
    path = _beside(folder, cell, ".json")
    try:
        return _given(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return None


def forget_failures(folder: Path) -> None:
    """Have the runs that an error ended be done again, by whoever works on the comparison in a folder."""
    for path in (folder / "runs").glob("*/draw-*.json"):
        try:
            has_failed = _given(path, path.stat().st_mtime_ns).has_failed
        except (OSError, ValueError):
            continue
        if has_failed:
            path.unlink(missing_ok=True)


def unfinished(folder: Path, grid: Grid) -> list[Cell]:
    """Return the runs that can be done and are not: first those by which values are chosen, then all."""
    tuning = [cell for cell in tuning_cells(grid) if result(folder, cell) is None]
    if tuning:
        return tuning
    return [cell for cell in final_cells(grid, chosen(folder, grid)) if result(folder, cell) is None]


def chosen(folder: Path, grid: Grid) -> Chosen:
    """Return what each variant has chosen: the lowest mean loss on the clients' validation, the first of equals.

    A run that says nothing is worse than all others.
    """
    values = combinations(grid.tuned)
    losses: dict[str, list[list[float]]] = {}
    for cell in tuning_cells(grid):
        of_variant = losses.setdefault(cell.variant.name, [[] for _ in values])
        of_variant[values.index(dict(cell.chosen))].append(_validation_loss(result(folder, cell)))
    return {
        name: min(zip(found, values, strict=True), key=lambda pair: fmean(pair[0]))[1] for name, found in losses.items()
    }


def why_idle(run: RunResult) -> str:
    """Return why nothing can be chosen by a run, else nothing."""
    if run.fault or math.isfinite(run.course.validation[-1]):
        return run.fault
    return "its last loss on the clients' validation is not a finite number"


def work(folder: Path) -> None:
    """Do runs of a comparison, one after another, until all are over, whoever has done them.

    Base model and data are read once for all of them.
    """
    from fedlora.comparison.cells import run_cell
    from fedlora.models.kept_modules import modules_kept
    from fedlora.training.data import KeptParts

    base, grid = read(folder)
    parts = KeptParts()
    with modules_kept():
        while left := unfinished(folder, grid):
            for cell in left:
                with _claimed(folder, cell) as is_ours:
                    if is_ours and result(folder, cell) is None:
                        found = run_cell(cell, base, folder, read=parts)
                        write_file(_beside(folder, cell, ".json"), _RESULTS.dump(found) + "\n")
                        break
            else:
                time.sleep(_PAUSE_SECONDS)
            # Others may have been asked for more draws.
            _, grid = read(folder)


def work_or_say_why(folder: Path, directory: Path) -> str:
    """Work on a comparison on whatever machine this is; return why that cannot be, or "" once all is over.

    Args:
        folder: the comparison's, whole.
        directory: in which the command was given; paths of the run file may start there.
    """
    spare_bitsandbytes()
    try:
        os.chdir(directory)
    except OSError as error:
        return (
            f"{directory}: a worker of Ray's on {platform.node()} cannot go there ({error.strerror}); give the command "
            "in a folder that all machines of the cluster share, under one path"
        )
    if not (folder / GRID_FILE).is_file():
        return (
            f"{folder}: a worker of Ray's on {platform.node()} sees no comparison there; give --out a folder that all "
            "machines of the cluster share, under one path"
        )
    try:
        work(folder)
    except FedloraError as error:
        return one_line(error)
    return ""


@cache  # What is written stays, but for failures: what is tried again is written at another time.
def _given(path: Path, _written_ns: int) -> RunResult:
    return _RESULTS.load(path.read_bytes())


def _validation_loss(found: RunResult | None) -> float:
    return math.inf if found is None or why_idle(found) else found.course.validation[-1]


def _beside(folder: Path, cell: Cell, suffix: str) -> Path:
    return folder / f"{cell.folder}{suffix}"


@contextmanager
def _claimed(folder: Path, cell: Cell) -> Iterator[bool]:
    """Hold a cell meanwhile; gives whether nobody else does."""
    path = _beside(folder, cell, ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_held(path):
        yield False
        return
    with open(path, "wb") as file:
        try:
            hold(file)
        except BlockingIOError:
            yield False
        else:
            yield True


def main() -> None:
    """Work on the comparison in the folder that is named, and end with whoever has started this process."""
    for number in (signal.SIGTERM, signal.SIGINT):  # Ctrl-C reaches whoever has started this process as well.
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    spare_bitsandbytes()
    started_by = os.getppid()
    try:
        _end_with(started_by)
        work(Path(sys.argv[1]))
    except FedloraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _end_with(parent: int) -> None:
    """Have this process interrupted when its parent is gone, which may have been killed."""
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PAUSE_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


if __name__ == "__main__":
    main()
