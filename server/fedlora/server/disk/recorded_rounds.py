"""The rounds of a run as `rounds.jsonl` has them: for who only looks. What a run goes on from is its journal."""

from collections.abc import Iterator
from pathlib import Path

from fedlora.common.run_folder import ROUNDS_FILE
from fedlora.server.record.round_report import CODEC, RoundReport


def recorded_rounds(folder: Path) -> Iterator[RoundReport]:
    """Yield the reports of the rounds that are over, as far as they can be read."""
    try:
        with open(folder / ROUNDS_FILE, "rb") as lines:
            yield from map(CODEC.load, lines)
    except (OSError, ValueError):
        return
