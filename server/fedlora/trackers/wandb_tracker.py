"""Weights & Biases: offline below the run's folder, for `wandb sync`; online where WANDB_MODE says so."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.common.files import write_file
from fedlora.trackers.tracker import TrackedRun

_LAST_ROUND_FILE = "fedlora-last-round"
_UNSPEAKABLE = re.compile(r"[^\w\-]")
# What follows a round's own row with its number is of the round before.
_ROWS_A_ROUND = 2


class WeightsAndBiases:
    """Writes rows of one of wandb's runs, whose steps go on over the processes of a run."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run = run
        self._file = folder / _LAST_ROUND_FILE
        self.last_round = int(self._file.read_text()) if self._file.is_file() else -1
        self._newest = self.last_round
        run.define_metric("*", step_metric="round")

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a row for a round, or a second one for the round before the one that is to come."""
        is_later = round <= self._newest
        self._run.log({"round": round, **numbers}, step=_ROWS_A_ROUND * round + is_later)
        if not is_later:
            self._newest = round
            write_file(self._file, f"{round}\n")

    def close(self, *, is_finished: bool) -> None:
        """Say whether the run is over."""
        self._run.finish(exit_code=0 if is_finished else 1)


def open_tracker(run: TrackedRun) -> WeightsAndBiases:
    """Return wandb's run for this one; its id is this one's."""
    import wandb

    folder = run.folder.resolve() / "wandb"
    folder.mkdir(exist_ok=True)
    quiet = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    made = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "fedlora"),
        id=_UNSPEAKABLE.sub("-", run.id),
        name=run.name,
        dir=str(run.folder.resolve()),
        config=dict(run.settings),
        mode="online" if os.environ.get("WANDB_MODE") == "online" else "offline",
        resume="allow",
        settings=quiet,
    )
    return WeightsAndBiases(made, folder)
