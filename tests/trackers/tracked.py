"""A run's events for trackers to hear, and rounds whose numbers tell where they belong."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedlora.common.config import RunConfig
from fedlora.common.messages import Score
from fedlora.common.run_folder import MANIFEST_FILE
from fedlora.server.record.events import RoundEnded, RunStarted
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.trackers import OpenTracker
from fedlora.trackers.tracking import Tracking

CONFIG = RunConfig.model_validate({"run": {"name": "tracked"}, "federation": {"rounds": 4}})


def report(number: int) -> RoundReport:
    """Return a round whose held-out loss is its number, and whose validation of the round before is that plus 0.5."""
    before = Score(4, number - 0.5, 0.25)
    client = ClientReport(10, 3, 0.1 * number, before, Score(4, 9.0, 0.0), {})
    return RoundReport(
        number,
        ("a",),
        {"a": client} if number else {},
        {},
        None,
        HeldOutReport(Score(8, float(number), 0.5), {"mono": Score(8, float(number), 0.75)}, True),
        bytes_down=100,
        bytes_up=50,
        seconds={"training": 2.0, "storing": 1.0},
    )


def last(number: int) -> RoundReport:
    """Return a run's last round, whose own validation is known."""
    return replace(report(number), validation=Score(4, number + 0.5, 0.25))


def track(
    folder: Path,
    trackers: Mapping[str, OpenTracker],
    *,
    known: tuple[RoundReport, ...] = (),
    new: tuple[RoundReport, ...],
    is_killed: bool = False,
) -> list[str]:
    """Track the rounds of one process, and return what was said of trackers that failed.

    Args:
        known: the rounds of earlier processes.
        is_killed: whether the process ends without a word to the trackers' ends.
    """
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST_FILE).write_text(json.dumps({"run_id": "abc123"}))
    said: list[str] = []
    tracking = Tracking(trackers, CONFIG, folder, say=said.append)
    tracking.heard(RunStarted(("a",), 4, len(known), known))
    for each in new:
        tracking.heard(RoundEnded(each))
    if not is_killed:
        tracking.__exit__(None, None, None)
    return said
