"""A run with trackers is the run without them, also where one fails."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from fedlora.server.record.events import Event, Noted
from fedlora.simulation import SimulationResult, simulate
from fedlora.trackers import TrackedRun, registry

RunFile = Callable[..., Path]


class FailsLate:
    """A tracker whose disk is full after the first round."""

    last_round = -1

    def __init__(self, _run: TrackedRun) -> None:
        self.num_written = 0

    def write(self, round: int, numbers: Mapping[str, float]) -> None:  # noqa: ARG002
        self.num_written += 1
        if self.num_written == 2:
            raise OSError("no space left")

    def close(self, *, is_finished: bool) -> None:
        """Never reached."""


def test_trackers_change_no_bit_and_one_that_fails_is_said_on_the_terminal_and_in_the_report(
    run_file: RunFile, tmp_path: Path, finished_run: SimulationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: fedlora[tensorboard]")
    points = [*registry.tracker_points().values(), EntryPoint("late", f"{__name__}:FailsLate", "fedlora.trackers")]
    monkeypatch.setattr(EntryPoint, "load", _loading(FailsLate))
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points if group == "fedlora.trackers" else [])
    events: list[Event] = []
    out = tmp_path / "out"
    result = simulate(run_file(), out=out, num_workers=1, track=["tensorboard", "late"], listener=events.append)
    assert result.reports[-1].adapter_sha256 == finished_run.reports[-1].adapter_sha256
    said = "--track late failed (OSError: no space left); the run goes on without it"
    assert [event.lines for event in events if isinstance(event, Noted) and said in event.lines] == [(said,)]
    assert said in (out / "report.html").read_text()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(out / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in found.Scalars("held_out/loss")] == [0, 1, 2]


def _loading(late: type) -> Callable[[EntryPoint], object]:
    """Return what loads entry points as ever, but for the one of this file, which is no installed module."""
    load = EntryPoint.load
    return lambda point: late if point.name == "late" else load(point)
