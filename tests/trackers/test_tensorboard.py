"""TensorBoard's event files, read by TensorBoard."""

import time
from pathlib import Path

import pytest
from tracked import last, report, track

from fedlora.trackers import load_trackers

pytest.importorskip("tensorboard", reason="tensorboard is not installed: fedlora[tensorboard]")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of each number, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {
        tag: [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def wait_for_the_next_second() -> None:
    """TensorBoard reads files in the order of their names: of one second, the tenth of a process before its ninth."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.01)


def test_rounds_of_three_processes_one_of_them_killed_are_one_curve(tmp_path: Path) -> None:
    trackers = load_trackers(["tensorboard"])
    assert track(tmp_path, trackers, new=(report(0), report(1))) == []
    wait_for_the_next_second()
    track(tmp_path, trackers, known=(report(0), report(1)), new=(), is_killed=True)
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-3])  # Cut off in the middle of a record.
    wait_for_the_next_second()
    assert track(tmp_path, trackers, known=(report(0), report(1), report(2)), new=(report(3), last(4))) == []
    found = curves(tmp_path)
    assert found["held_out/loss"] == [(number, float(number)) for number in range(5)]
    assert found["validation/loss"] == [(number, number + 0.5) for number in range(5)]
    assert found["held_out/metric/mono"][0] == (0, 0.75)
