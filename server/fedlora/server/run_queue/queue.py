"""Which runs a store has, in the order in which they are done. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedlora.common.codec import Codec
from fedlora.common.errors import ConfigError, StoreError

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class QueuedRun:
    """A run of a store.

    Attributes:
        name: the run file's, one in the store.
        run_toml: the run file, resolved.
        submitted: when, in UTC and ISO 8601.
        state: "running" also while no server is at it, until one goes on with it; a "stopped" or "failed" one goes on
            once it is submitted again.
        detail: why it failed.
    """

    name: str
    run_toml: str
    submitted: str
    state: State = "waiting"
    detail: str = ""


@dataclass(frozen=True)
class RunQueue:
    """All runs of a store, in the order in which they were submitted last."""

    runs: tuple[QueuedRun, ...] = ()

    def find(self, name: str) -> QueuedRun:
        """Return the run of that name.

        Raises:
            StoreError: there is none.
        """
        for run in self.runs:
            if run.name == name:
                return run
        known = ", ".join(run.name for run in self.runs) or "none yet"
        raise StoreError(f"there is no run {name!r}; the store has {known}")

    def next(self) -> QueuedRun | None:
        """Return the run that is to be done: one that was cut off, or the first that waits."""
        states: Sequence[State] = ("running", "waiting")
        return next((run for state in states for run in self.runs if run.state == state), None)

    def submitted(self, run: QueuedRun) -> "RunQueue":
        """Return the queue with a run at its end, also one that is over and is to go on.

        Raises:
            ConfigError: a run of that name waits, or is running.
        """
        for known in self.runs:
            if known.name == run.name and known.state in ("waiting", "running"):
                raise ConfigError(
                    f"{run.name} is {known.state} already; stop it first with fedlora runs stop {run.name}, or give "
                    "this one another name: --set run.name=..."
                )
        return RunQueue((*(known for known in self.runs if known.name != run.name), run))

    def with_state(self, name: str, state: State, *, detail: str = "") -> "RunQueue":
        """Return the queue with a run in another state."""
        return RunQueue(
            tuple(replace(run, state=state, detail=detail) if run.name == name else run for run in self.runs)
        )


CODEC = Codec(RunQueue)
