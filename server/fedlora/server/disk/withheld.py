"""Which rounds of a run are not published, and why: `unpublished.json` in its folder, of the newest ones."""

import json
import logging
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.files import write_file
from fedlora.common.parsing import json_in
from fedlora.server.record.events import Listener, NotPublished, ignore

logger = logging.getLogger(__name__)

UNPUBLISHED_FILE = "unpublished.json"

_KEPT = 50


class Withheld:
    """Says of each round once that it is not published, and keeps the reason."""

    def __init__(self, run_folder: Path, listener: Listener) -> None:
        self._path = run_folder / UNPUBLISHED_FILE
        self._listener = listener
        self._reasons = withheld_rounds(run_folder)

    def tell(self, round: int, why: str) -> None:
        """Say that a round is not published, unless that was said before."""
        if self._reasons.get(round) != why:
            logger.error("round %d is not published: %s", round, why)
            self.note(round, why)
            self._listener(NotPublished(round, why))

    def note(self, round: int, why: str) -> None:
        """Keep why a round is not published so far, for who looks at the folder; it is said to nobody."""
        self._write({**self._reasons, round: why})

    def part(self) -> None:
        """Tell the listener no more, and keep nothing of it."""
        self._listener = ignore

    def forget(self, round: int, *, why: str | None = None) -> None:
        """Keep a round's reason no longer: it is published after all, or `why` it was not holds no more."""
        if round in self._reasons and why in (None, self._reasons[round]):
            self._write({number: why for number, why in self._reasons.items() if number != round})

    def _write(self, reasons: dict[int, str]) -> None:
        self._reasons = dict(sorted(reasons.items())[-_KEPT:])
        try:
            write_file(self._path, json.dumps(self._reasons) + "\n")
        except StoreError as error:
            logger.error("%s", error)


def withheld_rounds(run_folder: Path) -> dict[int, str]:
    """Return by round why it is not published, of the newest that were refused."""
    try:
        found = json_in((run_folder / UNPUBLISHED_FILE).read_bytes())
        return {int(number): str(why) for number, why in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
