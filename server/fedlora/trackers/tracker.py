"""What a tracker is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of its run.

    Attributes:
        id: of the run; a run that goes on has the one that it began with.
        name: as the run file has it.
        folder: the run's; what a tracker writes on this machine belongs below it.
        settings: the run file's, by `section.key`: numbers, words, and lists as text.
    """

    id: str
    name: str
    folder: Path
    settings: Mapping[str, str | int | float | bool]


class Tracker(Protocol):
    """Keeps a run's numbers. All calls come from one thread; what one raises ends the tracking, never the run."""

    @property
    def last_round(self) -> int:
        """The newest round of this run that it holds already, with earlier processes' rounds; -1 for none.

        Only rounds after it are written: those that an earlier process has not come to as well.
        """

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        """Keep numbers of a round, which need not be finite; a round's validation comes after it, in a call of its own.

        What is written is to be found by others when this returns, as far as that is in its power.
        """

    def close(self, *, is_finished: bool) -> None:
        """End: the run is finished, or may go on another time."""


OpenTracker = Callable[[TrackedRun], Tracker]
"""Returns a run's tracker: a new one, or the one it had. Called in the tracker's thread, when the rounds begin."""
