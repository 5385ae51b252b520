"""TensorBoard: event files in `tensorboard/` of the run's folder, for `tensorboard --logdir`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlora.trackers.tracker import TrackedRun

# Every round has it.
_IN_EVERY_ROUND = "seconds/round"


class TensorBoard:
    """Writes a run's event files."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        """`settings` are shown as a text, of a new run."""
        from torch.utils.tensorboard import SummaryWriter

        self.last_round = _last_round(folder)
        self._writer: Any = SummaryWriter(str(folder))
        if self.last_round < 0:
            lines = "\n".join(f"    {key} = {value}" for key, value in settings.items())
            self._writer.add_text("run file", lines)

    def write(self, round: int, numbers: Mapping[str, float]) -> None:
        """Write a round's numbers to the disk."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, round)
        self._writer.flush()

    def close(self, *, is_finished: bool) -> None:  # noqa: ARG002 (event files do not say how a run ended)
        """Close the file."""
        self._writer.close()


def open_tracker(run: TrackedRun) -> TensorBoard:
    """Return the run's event files."""
    return TensorBoard(run.folder / "tensorboard", run.settings)


def _last_round(folder: Path) -> int:
    """Return the newest round in the event files of a folder; one that a crash has cut off ends there."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    rounds = [-1]
    for path in folder.glob("events.out.tfevents.*"):
        for raw in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(raw)
            rounds += [event.step for value in event.summary.value if value.tag == _IN_EVERY_ROUND]
    return max(rounds)
