"""What is asked of sites as Flower's messages, and what their messages answer.

A Grid whose messages come from other owners' machines takes out of them what is local before they are read here.
"""

from collections.abc import Iterable, Sequence

from flwr.app import Message

from fedlora.common.errors import RunError
from fedlora.common.messages import UNREADABLE, WORKER_DIED, Failure
from fedlora.common.records import message_type_of, receipt_type_of, reply_from_record, to_record
from fedlora.server.sites.contract import Reply


class Questions:
    """The questions that are out, by the id of their message."""

    def __init__(self, *, with_files: bool) -> None:
        """`with_files`: whether replies come from this very process, and may name an adapter's file."""
        self._with_files = with_files
        self._expected: dict[str, type] = {}

    def message(self, node: int, label: str, request: object) -> Message:
        """Return the message that carries a request to a node."""
        return Message(to_record(request), node, message_type_of(request), group_id=label)

    def sent(self, ids: Iterable[str], requests: Sequence[object]) -> list[str]:
        """Remember what answers each request, and return the ids of their messages."""
        ids = list(ids)
        self._expected.update(zip(ids, map(receipt_type_of, requests), strict=True))
        return ids

    def forget(self, ids: Iterable[str]) -> None:
        """Expect no answer any more."""
        for id in ids:
            self._expected.pop(id, None)

    def read(self, message: Message) -> Reply:
        """Return the reply in a message. What Flower itself reports means that nobody is left who could explain it."""
        id = message.metadata.reply_to_message_id
        expected = self._expected.pop(id)
        if message.has_error():
            return Reply(id, Failure(WORKER_DIED, message.error.reason or f"Flower's error {message.error.code}"))
        try:
            return Reply(id, self._content(message, expected))
        except RunError as error:
            return Reply(id, Failure(UNREADABLE, str(error)))

    def _content(self, message: Message, expected: type) -> object:
        return reply_from_record(message.content, expected, with_files=self._with_files, with_local=True)
