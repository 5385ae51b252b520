"""Requests to sites, and their answers one by one as they arrive.

Several inquiries may be out at once, also to one site: each takes its own answers. And one may go on in phases, which
ask the same clients for what comes after their answers to the phase before.
"""

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from fedlora.common.errors import RunError
from fedlora.common.messages import WORKER_DIED, Failure
from fedlora.common.packed_file import PackedFile
from fedlora.common.schema import PACKED
from fedlora.server.sites import Sites
from fedlora.server.sites.contract import MAX_ATTEMPTS

logger = logging.getLogger(__name__)

Receipt = TypeVar("Receipt")
Next = TypeVar("Next")


@dataclass(frozen=True)
class Answer(Generic[Receipt]):
    """One answer: to the request of that key, sent for the `attempt`-th time (from 0), as the reply of that id."""

    key: str
    attempt: int
    content: Receipt | Failure
    reply_id: str = field(default="", compare=False)


Deadline = Callable[[str], float]
"""Gives by key for how many seconds from the request on an answer is waited for."""


def never(_key: str) -> float:
    """Return the deadline of requests to sites whose answers are sure to come, as those of this very machine."""
    return math.inf


@dataclass(frozen=True)
class Addressed:
    """A request to a site; `make` gives its content for an attempt."""

    site: str
    make: Callable[[int], object]


class Inquiry(Generic[Receipt]):
    """Requests that are out, and who of them has not answered."""

    def __init__(
        self,
        sites: Sites,
        requests: Mapping[str, Addressed],
        *,
        expected: type[Receipt],  # noqa: ARG002 (tells the type checker what comes)
        deadline: Deadline,
    ) -> None:
        """Send the requests."""
        self._sites = sites
        self._requests = requests
        self._deadline = deadline
        self._began = time.monotonic()
        self._pending: dict[str, tuple[str, int]] = {}
        self._answered: list[str] = []
        self._push(list(requests), 0)

    @property
    def waiting(self) -> set[str]:
        """The keys of the requests without an answer."""
        return {key for key, _ in self._pending.values()}

    @property
    def in_time(self) -> set[str]:
        """The keys of the requests without an answer whose deadline has not passed."""
        passed = time.monotonic() - self._began
        return {key for key in self.waiting if passed < self._deadline(key)}

    def answers(self, is_over: Callable[[Collection[str]], bool] = lambda _waiting: False) -> Iterator[Answer[Receipt]]:
        """Yield the answer to each request as it arrives: the expected receipt, or a Failure.

        A request whose worker died is sent again, up to three times in all; every other failure is an answer. The
        waiting ends with the last deadline, or early where `is_over` says so of the keys that are in time.
        """
        while (in_time := self.in_time) and not is_over(in_time):
            yield from self.poll()

    def poll(self) -> list[Answer[Receipt]]:
        """Return the answers that are there, after a short wait at most."""
        answers: list[Answer[Receipt]] = []
        for reply in self._sites.replies(list(self._pending)):
            key, attempt = self._pending.pop(reply.id)
            content = reply.content
            if isinstance(content, Failure) and content.code == WORKER_DIED and self._can_ask_again(key, attempt):
                logger.warning("%s: %s; asking again", key, content.text or content.code)
                self._sites.acknowledge(reply.id, WORKER_DIED)
                self._push([key], attempt + 1)
            else:
                answers.append(Answer(key, attempt, content, reply.id))
                if not isinstance(content, Failure):
                    self._answered.append(key)
        return answers

    def next_phase(
        self, make: Callable[[str, int], object], *, expected: type[Next], deadline: Deadline
    ) -> "Inquiry[Next]":
        """Return the next phase: everybody who has answered this one with a receipt is asked, and nobody else.

        Args:
            make: gives the request of a key for an attempt.
        """
        self.withdraw()
        asked = {key: Addressed(self._requests[key].site, partial(make, key)) for key in sorted(self._answered)}
        return Inquiry(self._sites, asked, expected=expected, deadline=deadline)

    def withdraw(self) -> None:
        """Wait no more for those that have not answered."""
        self._sites.withdraw(list(self._pending))
        self._pending.clear()

    def _can_ask_again(self, key: str, attempt: int) -> bool:
        """Return whether a request may be sent once more: of a round long past the journal keeps no adapter."""
        request = self._requests[key].make(attempt + 1)
        files = [getattr(request, name, b"") for name in PACKED]
        is_gone = any(isinstance(file, PackedFile) and not file.path.is_file() for file in files)
        return attempt + 1 < MAX_ATTEMPTS and not is_gone

    def _push(self, keys: list[str], attempt: int) -> None:
        questions = [(self._requests[key].site, self._requests[key].make(attempt)) for key in keys]
        for key, reply_id in zip(keys, self._sites.ask(questions), strict=True):
            self._pending[reply_id] = (key, attempt)


def ask(
    sites: Sites, requests: Mapping[str, Addressed], *, expected: type[Receipt], deadline: Deadline
) -> Iterator[Answer[Receipt]]:
    """Yield the answer to each of `requests` as it arrives; see `Inquiry.answers`."""
    yield from Inquiry(sites, requests, expected=expected, deadline=deadline).answers()


def expect(answer: Answer[Receipt]) -> Receipt:
    """Return the receipt in `answer`.

    Raises:
        RunError: it is a failure, and the run cannot go on without the answer.
    """
    content = answer.content
    if isinstance(content, Failure):
        raise RunError(content.words(answer.key))
    return content
