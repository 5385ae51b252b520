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
    """A run that is over: the how-manieth of how many, and whether it was so before; of those to choose by first."""

    result: RunResult
    is_tuning: bool
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
    told: set[str] = set()
    _tell(folder, grid, told, listener, was_over=True)
    num_left = len([*tuning_cells(grid), *final_cells(grid, {})]) - len(told)
    tell = partial(_tell, folder, grid, told, listener)
    if engine == "ray":
        from fedlora.simulation.ray_engine import do_on_ray

        work = partial(work_or_say_why, folder.resolve(), Path.cwd())
        do_on_ray(work, num_workers=num_workers, num_most=num_left, meanwhile=tell)
    else:
        _run_in_processes(folder, worker_environments(max(1, num_left), num_workers), tell)


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


def _tell(
    folder: Path, grid: Grid, told: set[str], listener: Callable[[Progress], None], *, was_over: bool = False
) -> None:
    tuning = {cell.folder: cell for cell in tuning_cells(grid)}
    results = {path: result(folder, cell) for path, cell in tuning.items() if path not in told}
    is_tuned = None not in results.values()
    final = {cell.folder: cell for cell in final_cells(grid, chosen(folder, grid))} if is_tuned else {}
    num_all = len(tuning | final) if is_tuned else len(tuning) + len(list(final_cells(grid, {})))
    results |= {path: result(folder, cell) for path, cell in final.items() if path not in {*told, *tuning}}
    for path, found in results.items():
        if found is not None:
            told.add(path)
            listener(Progress(found, path in tuning, len(told), num_all, was_over))
