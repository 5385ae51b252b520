"""In which state a server's run is, from what its status file says and whether a process holds the folder. Pure."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

STATES = ("starting", "waiting", "running", "finished", "ended early", "failed", "stopped", "killed")


def state_of(status: Mapping[str, Any], *, is_running: bool) -> str:
    """Return one of `STATES`.

    A process that has ended in any order has said how; of one that was killed the last word is that it was at work.
    """
    phase = status.get("phase", "")
    if phase == "finished" and not is_running:
        return "ended early" if status.get("ended_early") else "finished"
    if not is_running:
        return "failed" if status.get("failure") else "stopped" if phase == "stopped" else "killed"
    if phase == "loading":
        return "starting"
    return "waiting" if phase == "waiting for sites" or status.get("waiting_for") else "running"


def last_word(status: Mapping[str, Any], seen: datetime | None) -> str:
    """Return when a server was last heard of, in UTC by ISO 8601; empty where nobody knows.

    Args:
        seen: when the run's process last noted its time.
    """
    said = str(status.get("written", ""))
    times = [said, "" if seen is None else seen.isoformat(timespec="seconds")]
    return max(times)
