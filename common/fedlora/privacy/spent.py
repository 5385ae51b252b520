"""What has been spent of the privacy of examples, for whoever is told. Light."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunSpent:
    """What one run has spent.

    Attributes:
        run: its id.
        epsilon, delta: of all its trainings together, at the delta of the run.
    """

    run: str
    epsilon: float
    delta: float
    num_trainings: int


@dataclass(frozen=True)
class Spent:
    """What all runs have spent: `epsilon` is of all together, at the least `delta` of any."""

    epsilon: float
    delta: float
    runs: tuple[RunSpent, ...]
