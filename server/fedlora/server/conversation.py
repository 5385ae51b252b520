"""Requests to clients through Flower's Grid, and their answers one by one as they arrive."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora.common.errors import RunError
from fedlora.common.messages import WORKER_DIED, Failure
from fedlora.common.records import reply_from_record, to_record

logger = logging.getLogger(__name__)

Receipt = TypeVar("Receipt")

_MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.1
_UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Answer(Generic[Receipt]):
    """One answer: to the request of that key, sent for the `attempt`-th time (from 0)."""

    key: str
    attempt: int
    content: Receipt | Failure


@dataclass(frozen=True)
class Addressed:
    """A request to a node; `make` gives its content for an attempt."""

    node: int
    make: Callable[[int], object]


def ask(
    grid: Grid, requests: Mapping[str, Addressed], *, message_type: str, expected: type[Receipt]
) -> Iterator[Answer[Receipt]]:
    """Yield the answer to each of `requests` as it arrives: the expected receipt, or a Failure.

    A request whose worker died is sent again, up to three times in all; every other failure is an answer.
    """
    pending: dict[str, tuple[str, int]] = {}

    def push(keys: list[str], attempt: int) -> None:
        messages = [
            Message(to_record(requests[key].make(attempt)), requests[key].node, message_type, group_id=key)
            for key in keys
        ]
        for key, message_id in zip(keys, grid.push_messages(messages), strict=True):
            pending[message_id] = (key, attempt)

    push(list(requests), 0)
    while pending:
        asked = time.monotonic()
        replies = list(grid.pull_messages(list(pending)))
        if not replies:
            # Our Grids wait for a reply themselves, Flower's answer at once.
            time.sleep(max(0.0, _POLL_SECONDS - (time.monotonic() - asked)))
        for reply in replies:
            key, attempt = pending.pop(reply.metadata.reply_to_message_id)
            content = _content(reply, expected)
            if isinstance(content, Failure) and content.code == WORKER_DIED and attempt + 1 < _MAX_ATTEMPTS:
                logger.warning("%s: %s; asking again", key, content.text)
                push([key], attempt + 1)
            else:
                yield Answer(key, attempt, content)


def expect(answer: Answer[Receipt]) -> Receipt:
    """Return the receipt in `answer`.

    Raises:
        RunError: it is a failure, and the run cannot go on without the answer.
    """
    content = answer.content
    if isinstance(content, Failure):
        raise RunError(content.text or f"{answer.key} answered {content.code}; its own log says why")
    return content


def _content(reply: Message, expected: type[Receipt]) -> Receipt | Failure:
    """Return the receipt in `reply`. Whatever Flower itself reports means that nobody is left who could explain it."""
    if reply.has_error():
        return Failure(WORKER_DIED, reply.error.reason or f"Flower's error {reply.error.code}")
    try:
        return reply_from_record(reply.content, expected)
    except RunError as error:
        return Failure(_UNREADABLE, str(error))
