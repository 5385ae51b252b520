"""What happened when, told from process to process in a file: a JSON object a line, `at` by the machine's own clock."""

import json
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class EventLog:
    """Writes events to a file."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 (for the process's life)

    def say(self, event: str, **facts: object) -> None:
        """Write an event of this moment: seconds of the clock that all processes of a Linux machine share."""
        self._file.write(json.dumps({"at": time.monotonic(), "event": event, **facts}) + "\n")


def events_in(path: Path) -> list[Event]:
    """Return the events so far; a last line that is not whole is left for the next call."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
