"""The runs of a comparison in processes of their own, watched from here until all are over."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedlora.common.errors import RunError
from fedlora.comparison.grid import Grid, final_cells, tuning_cells
from fedlora.comparison.results import RunResult
from fedlora.comparison.work import chosen, read, result, work_or_say_why
from fedlora.simulation.inprocess import worker_environments
from fedlora.simulation.simulate import Engine

_POLL_SECONDS, _END_SECONDS = 0.5, 20.0
_LAST_CHARACTERS = 2_000


@dataclass(frozen=True)
class Progress:
    """A run that is over: the how-manieth of how many, and whether it was so before; of those to choose by first.

    `tried` are the values that it has, where it is one to choose by.
    """

    result: RunResult
    tried: Mapping[str, str]
    num_done: int
    num_all: int
    was_over: bool


def run_all(
    folder: Path, *, num_workers: int | None, listener: Callable[[Progress], None], engine: Engine = "inprocess"
) -> None:
    """Do all runs of the comparison in a folder, as many at a time as there are workers.

    Args:
        num_workers: without it one for each core, or for each GPU where there are any.
        listener: told of each run that is over, of those that were so before too.
        engine: "inprocess": workers are processes of our own; "ray": of Ray's.

    Raises:
        ConfigError: there is no Ray.
        RunError: a worker has failed; what is over stays.
    """
    _, grid = read(folder)
    tell = _Teller(folder, grid, listener)
    tell(was_over=True)
    if engine == "ray":
        from fedlora.simulation.ray_engine import do_on_ray

        work = partial(work_or_say_why, folder.resolve(), Path.cwd())
        do_on_ray(work, num_workers=num_workers, num_most=tell.num_left, meanwhile=tell)
    else:
        _run_in_processes(folder, worker_environments(max(1, tell.num_left), num_workers), tell)


def _run_in_processes(folder: Path, environments: Sequence[Mapping[str, str]], tell: Callable[[], None]) -> None:
    logs = [folder / f"worker-{os.getpid()}-{number}.log" for number in range(len(environments))]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for environment, log in zip(environments, logs, strict=True):
            with open(log, "wb") as output:
                command = [sys.executable, "-m", "fedlora.comparison.work", str(folder)]
                workers.append(
                    subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
                )
        while any(worker.poll() is None for worker in workers):
            _require_well(workers, logs)
            tell()
            time.sleep(_POLL_SECONDS)
        _require_well(workers, logs)
        tell()
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(_END_SECONDS)
            worker.kill()
    for log in logs:
        if not log.read_bytes():
            log.unlink()


def _require_well(workers: list["subprocess.Popen[bytes]"], logs: list[Path]) -> None:
    for worker, log in zip(workers, logs, strict=True):
        if worker.poll() not in (None, 0):
            said = log.read_text(errors="replace").strip()[-_LAST_CHARACTERS:].splitlines()
            raise RunError(
                f"a worker has ended with {worker.returncode}: {said[-1] if said else 'without a word'}; {log} has all "
                "that it said, and the same command goes on with what is left"
            )


class _Teller:
    """Tells of each run once, when it is over; those of which it was told it looks for no more."""

    def __init__(self, folder: Path, grid: Grid, listener: Callable[[Progress], None]) -> None:
        self._folder, self._grid, self._listener = folder, grid, listener
        self._tuning = {cell.folder: cell for cell in tuning_cells(grid)}
        self._left = dict(self._tuning)
        self._is_tuned = False
        self._num_told = 0
        self._num_all = len(self._tuning) + len(list(final_cells(grid, {})))

    @property
    def num_left(self) -> int:
        """How many there are still to tell of, as far as that is known before all values are chosen."""
        return self._num_all - self._num_told

    def __call__(self, *, was_over: bool = False) -> None:
        found = self._found()
        if not self._left and not self._is_tuned:
            self._is_tuned = True
            final = {cell.folder: cell for cell in final_cells(self._grid, chosen(self._folder, self._grid))}
            self._left = {path: cell for path, cell in final.items() if path not in self._tuning}
            self._num_all = len(self._tuning | final)
            found += self._found()
        for path, given in found:
            self._num_told += 1
            tried = self._tuning[path].chosen if path in self._tuning else {}
            self._listener(Progress(given, tried, self._num_told, self._num_all, was_over))

    def _found(self) -> list[tuple[str, RunResult]]:
        """Return what is over of what is left, which it then is no more."""
        results = ((path, result(self._folder, cell)) for path, cell in self._left.items())
        found = [(path, given) for path, given in results if given is not None]
        for path, _ in found:
            del self._left[path]
        return found
