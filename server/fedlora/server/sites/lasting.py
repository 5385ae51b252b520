"""The sites behind a Grid over lasting connections: they come and go, and their answers are acknowledged."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from fedlora.common.messages import SiteDescription
from fedlora.server.sites.contract import Reply, Traffic
from fedlora.server.sites.lasting_grid import LastingGrid
from fedlora.server.sites.questions import Questions


class LastingSites:
    """The sites of a lasting Grid, by name."""

    are_fixed = False
    keep_adapters = True

    def __init__(self, grid: LastingGrid) -> None:
        self._grid = grid
        # They come from this very process.
        self._questions = Questions(with_files=True)

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
        messages = [self._questions.message(self._grid.node_of(site), site, request) for site, request in questions]
        return self._questions.sent(self._grid.push_messages(messages), [request for _, request in questions])

    def replies(self, ids: Collection[str]) -> list[Reply]:
        return [self._questions.read(message) for message in self._grid.pull_messages(list(ids))] if ids else []

    def acknowledge(self, id: str, refusal: str) -> None:
        self._grid.acknowledge(id, refusal)

    def take_back(self, site: str, round: int, refusal: str) -> None:
        self._grid.take_back(site, round, refusal)

    def withdraw(self, ids: Iterable[str]) -> None:
        withdrawn = list(ids)
        self._grid.withdraw(withdrawn)
        self._questions.forget(withdrawn)

    def traffic(self) -> Traffic | None:
        return self._grid.traffic()

    def pause(self, seconds: float) -> None:
        self._grid.pause(seconds)
