"""Requests to clients through Flower's Grid, and their answers one by one as they arrive."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora.common.errors import RunError
from fedlora.common.messages import WORKER_DIED, Failure
from fedlora.common.records import reply_from_record, to_record
from fedlora.server.lasting_grid import LastingGrid

logger = logging.getLogger(__name__)

Receipt = TypeVar("Receipt")

_MAX_ATTEMPTS = 3
_POLL_SECONDS = 0.1
_UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Answer(Generic[Receipt]):
    """One answer: to the request of that key, sent for the `attempt`-th time (from 0), as the message of that id."""

    key: str
    attempt: int
    content: Receipt | Failure
    message_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Addressed:
    """A request to a node; `make` gives its content for an attempt."""

    node: int
    make: Callable[[int], object]


class Inquiry(Generic[Receipt]):
    """Requests that are out, and who of them has not answered."""

    def __init__(
        self, grid: Grid, requests: Mapping[str, Addressed], *, message_type: str, expected: type[Receipt]
    ) -> None:
        """Send the requests."""
        self._grid = grid
        self._requests = requests
        self._message_type = message_type
        self._expected = expected
        self._pending: dict[str, tuple[str, int]] = {}
        self._push(list(requests), 0)

    @property
    def waiting(self) -> Collection[str]:
        """The keys of the requests without an answer."""
        return {key for key, _ in self._pending.values()}

    def answers(self, is_over: Callable[[Collection[str]], bool] = lambda _waiting: False) -> Iterator[Answer[Receipt]]:
        """Yield the answer to each request as it arrives: the expected receipt, or a Failure.

        A request whose worker died is sent again, up to three times in all; every other failure is an answer. The
        waiting ends early where `is_over` says so of the keys without an answer.
        """
        while self._pending and not is_over(self.waiting):
            asked = time.monotonic()
            answers = self.poll()
            if not answers:
                # Our Grids wait for a reply themselves, Flower's answer at once.
                time.sleep(max(0.0, _POLL_SECONDS - (time.monotonic() - asked)))
            yield from answers

    def poll(self) -> list[Answer[Receipt]]:
        """Return the answers that are there, after a short wait at most."""
        answers: list[Answer[Receipt]] = []
        for reply in self._grid.pull_messages(list(self._pending)) if self._pending else ():
            message_id = reply.metadata.reply_to_message_id
            key, attempt = self._pending.pop(message_id)
            content = self._content(reply)
            if isinstance(content, Failure) and content.code == WORKER_DIED and attempt + 1 < _MAX_ATTEMPTS:
                logger.warning("%s: %s; asking again", key, content.text or content.code)
                acknowledge(self._grid, Answer(key, attempt, content, message_id), refusal=WORKER_DIED)
                self._push([key], attempt + 1)
            else:
                answers.append(Answer(key, attempt, content, message_id))
        return answers

    def withdraw(self) -> None:
        """Wait no more for those that have not answered."""
        if isinstance(self._grid, LastingGrid):
            self._grid.withdraw(list(self._pending))
        self._pending.clear()

    def _push(self, keys: list[str], attempt: int) -> None:
        messages = [
            Message(
                to_record(self._requests[key].make(attempt)), self._requests[key].node, self._message_type, group_id=key
            )
            for key in keys
        ]
        for key, message_id in zip(keys, self._grid.push_messages(messages), strict=True):
            self._pending[message_id] = (key, attempt)

    def _content(self, reply: Message) -> Receipt | Failure:
        """Return the receipt in `reply`. What Flower itself reports means that nobody is left who could explain it."""
        if reply.has_error():
            return Failure(WORKER_DIED, reply.error.reason or f"Flower's error {reply.error.code}")
        try:
            # Only our own Grid, in this process, may name files.
            return reply_from_record(reply.content, self._expected, with_files=isinstance(self._grid, LastingGrid))
        except RunError as error:
            return Failure(_UNREADABLE, str(error))


def ask(
    grid: Grid, requests: Mapping[str, Addressed], *, message_type: str, expected: type[Receipt]
) -> Iterator[Answer[Receipt]]:
    """Yield the answer to each of `requests` as it arrives; see `Inquiry.answers`."""
    yield from Inquiry(grid, requests, message_type=message_type, expected=expected).answers()


def acknowledge(grid: Grid, answer: Answer[Receipt], *, refusal: str = "") -> None:
    """Tell the site, where the Grid can, that its answer is on disk, or by which code it was refused."""
    if isinstance(grid, LastingGrid):
        grid.acknowledge(answer.message_id, refusal)


def expect(answer: Answer[Receipt]) -> Receipt:
    """Return the receipt in `answer`.

    Raises:
        RunError: it is a failure, and the run cannot go on without the answer.
    """
    content = answer.content
    if isinstance(content, Failure):
        raise RunError(content.text or f"{answer.key} answered {content.code}; its own log says why")
    return content
