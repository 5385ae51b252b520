"""`engines`: the in-process engine against Flower's on Ray, with clients that do nothing and with the default run.

The same apps and the same number of workers (one per core) on both, one engine after the other, each
in a process of its own; which goes first changes from pair to pair. Start is from the call until the
ServerApp knows all clients (default run: until RunStarted), stop from the last round's end to the
return of the call; the default run's rounds include its evaluation before training. With clients that
do nothing, workers may still be starting in the first round: "round after the first" leaves it out
(the mean of the others). "10x10" is clients x rounds. A ratio is Ray's seconds over ours, of one pair.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from default_run import NUM_CLIENTS, QUICK
from figures import Figure, Goal, at_least
from fresh_process import run_fresh
from machine import usable_cores
from progress import progress

_NUM_IDLE_CLIENTS = 10


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the seconds of each phase on both engines, and their ratios."""
    num_rounds, num_pairs = (3, 1) if quick else (10, 5)
    yield from _compared(
        f"do-nothing {_NUM_IDLE_CLIENTS}x{num_rounds}",
        lambda engine: run_fresh("timed_idle_rounds.py", engine, min(usable_cores(), _NUM_IDLE_CLIENTS), num_rounds),
        num_pairs=num_pairs,
        goals={"total": at_least(5), "rounds": at_least(1), "round_after_the_first": at_least(1)},
    )
    overrides = json.dumps(QUICK if quick else ())
    yield from _compared(
        "default run",
        lambda engine: run_fresh("timed_simulation.py", engine, min(usable_cores(), NUM_CLIENTS), overrides),
        num_pairs=1 if quick else 2,
        goals={"total": at_least(1)},
    )


def _compared(what: str, run: Callable[[str], Any], *, num_pairs: int, goals: dict[str, Goal]) -> list[Figure]:
    """Return both engines' seconds by phase, and the ratios with their goals; `run` times an engine once."""
    seconds: dict[str, list[dict[str, float]]] = {"inprocess": [], "ray": []}
    for pair in range(num_pairs):
        for engine in sorted(seconds, reverse=pair % 2 == 1):
            progress(f"{what}, {engine}, {pair + 1} of {num_pairs}")
            seconds[engine].append(run(engine)["seconds"])
    rows = []
    for phase in ("start", "rounds", "round_after_the_first", "stop", "total"):
        if phase not in seconds["ray"][0]:
            continue
        name = f"{what}: {phase.replace('_', ' ')}"
        ours, rays = ([one[phase] for one in seconds[engine]] for engine in ("inprocess", "ray"))
        ratios = [ray / own for own, ray in zip(ours, rays, strict=True)]
        rows += [
            Figure(f"{name}, in process", "s", ours),
            Figure(f"{name}, Ray", "s", rays),
            Figure(f"{name}, Ray / in process", "x", ratios, goals.get(phase)),
        ]
    return rows
