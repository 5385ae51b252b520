"""`default`: the default run (the preset "digits" in process) by phase, and what its workers do meanwhile.

Start is from the call of `simulate` to RunStarted, stop from the last RoundEnded to its return, the
report included. Training and evaluation are wall time of the rounds, in which all workers are busy;
"between the phases" is what is left of the total. Of the clients' training (their own clocks, summed),
"outside the step" is what forward, backward and optimiser do not take: batches, schedule, bookkeeping.
A share of the workers' time is one of their number times the wall time of all training phases.
"""

import json
from typing import Any

from figures import Figure, at_most
from fresh_process import run_fresh
from machine import usable_cores
from progress import progress

QUICK = (
    "federation.rounds=2",
    "train.steps=2",
    "data.test=0.03",
    "evaluation.round_examples=50",
    "evaluation.client_examples=8",
)
NUM_CLIENTS = 5
_PHASES = {
    "import": "importing fedlora, before the call",
    "start": "start: call to RunStarted",
    "evaluation_before_training": "evaluation before training",
    "training": "training, all rounds",
    "evaluation": "evaluation, all rounds",
    "aggregation": "aggregation, all rounds",
    "storing": "storing, all rounds",
    "stop": "stop: last RoundEnded to return, with report",
    "between": "between the phases",
    "total": "total: call to return",
}


def figures(*, quick: bool) -> list[Figure]:
    """Return the phases' seconds, the shares, and what the run reached."""
    num_repeats = 1 if quick else 2
    num_workers = min(usable_cores(), NUM_CLIENTS)
    overrides = json.dumps(QUICK if quick else ())
    runs = []
    for repeat in range(num_repeats):
        progress(f"default run, {num_workers} workers, {repeat + 1} of {num_repeats}")
        runs.append(run_fresh("timed_simulation.py", "inprocess", num_workers, overrides))
    return [*_phases(runs), *_shares(runs, num_workers), *_outcome(runs)]


def _phases(runs: list[dict[str, Any]]) -> list[Figure]:
    parts = [phase for phase in _PHASES if phase not in ("import", "between", "total")]
    for run in runs:
        run["seconds"]["between"] = run["seconds"]["total"] - sum(run["seconds"][part] for part in parts)
    return [Figure(name, "s", [run["seconds"][phase] for run in runs]) for phase, name in _PHASES.items()]


def _shares(runs: list[dict[str, Any]], num_workers: int) -> list[Figure]:
    clients = [run["client_seconds"] for run in runs]
    outside = [100 * (client["training"] - client["step"]) / client["training"] for client in clients]
    available = [num_workers * run["seconds"]["training"] for run in runs]
    step = [100 * client["step"] / whole for client, whole in zip(clients, available, strict=True)]
    validation = [100 * client["validation"] / whole for client, whole in zip(clients, available, strict=True)]
    rest = [100 - one - other for one, other in zip(step, validation, strict=True)]
    return [
        Figure("of the clients' training: outside the step", "%", outside, at_most(10)),
        Figure("of the workers' time: forward, backward, optimiser", "%", step),
        Figure("of the workers' time: the clients' validation", "%", validation),
        Figure("of the workers' time: idle and other", "%", rest),
    ]


def _outcome(runs: list[dict[str, Any]]) -> list[Figure]:
    rows = [
        ("held-out accuracy before training", "accuracy", 0, 100),
        ("held-out accuracy after training", "accuracy", 1, 100),
        ("aggregation error of the plain means, first round", "error_before", 0, 100),
        ("aggregation error after the correction, first round", "error_after", 0, 100),
        ("aggregation error of the plain means, last round", "error_before", 1, 100),
        ("aggregation error after the correction, last round", "error_after", 1, 100),
    ]
    return [Figure(name, "%", [factor * run[key][place] for run in runs]) for name, key, place, factor in rows]
