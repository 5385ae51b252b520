"""The runs that wait at a server with a store: they have no folder yet, and stand in its queue alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedlora.common.printable import printable
from fedlora.dashboard.now import time_words
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.server.run_queue.queue import CODEC
from fedlora.server.run_queue.store import QUEUE_FILE

_MOST_BYTES = 16 << 20
_MOST_WAITING = 300


@dataclass(frozen=True)
class WaitingRun:
    """A run that is still to begin, in words."""

    name: str
    submitted_words: str


@dataclass(frozen=True)
class ShownQueue:
    """What waits at one store, the next one first.

    Attributes:
        place: of the store below the folder that is looked at; empty for itself.
        num_more: how many wait behind those that are shown.
        is_readable: whether the queue is one.
    """

    place: str
    waiting: Sequence[WaitingRun]
    num_more: int = 0
    is_readable: bool = True


def shown_queues(stores: Mapping[str, PlainFolder]) -> list[ShownQueue]:
    """Return the queues of the stores in which something waits, or that cannot be read."""
    queues = [_queue(place, folder) for place, folder in sorted(stores.items())]
    return [queue for queue in queues if queue.waiting or not queue.is_readable]


def _queue(place: str, folder: PlainFolder) -> ShownQueue:
    content = folder.read(QUEUE_FILE, most_bytes=_MOST_BYTES)
    try:
        runs = CODEC.load(content or b"").runs
    except ValueError:
        return ShownQueue(place, (), is_readable=False)
    waiting = [run for run in runs if run.state == "waiting"]
    shown = [WaitingRun(printable(run.name), _since(run.submitted)) for run in waiting[:_MOST_WAITING]]
    return ShownQueue(place, shown, num_more=len(waiting) - len(shown))


def _since(submitted: str) -> str:
    try:
        return time_words(datetime.fromisoformat(submitted).astimezone(UTC))
    except (ValueError, OverflowError):
        return time_words(None)
