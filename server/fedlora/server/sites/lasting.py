"""The sites behind a Grid over lasting connections: they come and go, and their answers are acknowledged."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from flwr.app import Message

from fedlora.common.errors import RunError
from fedlora.common.messages import Failure, SiteDescription
from fedlora.common.records import message_type_of, receipt_type_of, reply_from_record, to_record
from fedlora.server.sites.contract import Reply, Traffic
from fedlora.server.sites.flower import UNREADABLE
from fedlora.server.sites.lasting_grid import LastingGrid


class LastingSites:
    """The sites of a lasting Grid, by name."""

    are_fixed = False

    def __init__(self, grid: LastingGrid) -> None:
        self._grid = grid
        self._expected: dict[str, type] = {}

    def descriptions(self) -> Mapping[str, SiteDescription]:
        return self._grid.descriptions()

    def remember(self, sites: Iterable[str]) -> None:
        for site in sites:
            self._grid.node_of(site)

    def seconds_away(self) -> Mapping[str, float]:
        return self._grid.seconds_away()

    def turn_away(self, site: str, code: str) -> None:
        self._grid.turn_away(site, code)

    def ask(self, questions: Sequence[tuple[str, object]]) -> list[str]:
        messages = [
            Message(to_record(request), self._grid.node_of(site), message_type_of(request), group_id=site)
            for site, request in questions
        ]
        ids = list(self._grid.push_messages(messages))
        for id, (_, request) in zip(ids, questions, strict=True):
            self._expected[id] = receipt_type_of(request)
        return ids

    def replies(self, ids: Collection[str]) -> list[Reply]:
        return [self._read(message) for message in self._grid.pull_messages(list(ids))] if ids else []

    def acknowledge(self, id: str, refusal: str) -> None:
        self._grid.acknowledge(id, refusal)

    def withdraw(self, ids: Iterable[str]) -> None:
        withdrawn = list(ids)
        self._grid.withdraw(withdrawn)
        for id in withdrawn:
            self._expected.pop(id, None)

    def traffic(self) -> Traffic | None:
        return self._grid.traffic()

    def pause(self, seconds: float) -> None:
        self._grid.pause(seconds)

    def _read(self, message: Message) -> Reply:
        id = message.metadata.reply_to_message_id
        try:
            # It comes from this very process, and may name files.
            return Reply(id, reply_from_record(message.content, self._expected.pop(id), with_files=True))
        except RunError as error:
            return Reply(id, Failure(UNREADABLE, str(error)))
