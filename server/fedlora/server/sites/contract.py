"""The one seam between the rounds and the sites: who is there, what is asked, what comes back. Every engine fulfils it.

Who runs the rounds knows sites by name and asks nothing about the engine below: what an engine cannot do has an honest
answer here.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fedlora.common.messages import SiteDescription

# So many times a request is sent whose worker dies.
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Traffic:
    """Adapter bytes to and from the sites so far."""

    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Reply:
    """What came back for the question of that id: the receipt that belongs to the request, or a Failure."""

    id: str
    content: Any


class Sites(Protocol):
    """The sites of a run.

    Attributes:
        are_fixed: whether those of the start are the same, with the same data, as long as the run lasts: nobody comes
            later, and who does not answer will not come back.
        keep_adapters: whether they have what they were sent in the round before, which then does not travel again.
    """

    are_fixed: bool

    @property
    def keep_adapters(self) -> bool: ...

    def descriptions(self) -> Mapping[str, SiteDescription]:
        """Return by name what the sites that can be asked now say of themselves.

        Raises:
            RunError: there are too few, they do not fit together, or the run is to stop.
        """

    def remember(self, sites: Iterable[str]) -> None:
        """Count sites that took part before as known: they may come back."""

    def seconds_away(self) -> Mapping[str, float]:
        """Return for how long each known site has not been there, in seconds.

        It is 0 for one that takes part, and infinite for one that is there and takes none.
        """

    def turn_away(self, site: str, code: str) -> None:
        """Count a site as not ready, by the code of what keeps it from taking part, and tell it so."""

    def ask(self, questions: Sequence[tuple[str, object]]) -> list[str]:
        """Send each request to its site, by name, and return an id for each; one site may be asked several times."""

    def replies(self, ids: Collection[str]) -> list[Reply]:
        """Return those of the replies that are there, each once, after a short wait for one at most."""

    def acknowledge(self, id: str, refusal: str) -> None:
        """Tell the site that its reply is on disk, or that it was refused, by the reason's code."""

    def take_back(self, site: str, round: int, refusal: str) -> None:
        """Tell a site that its update of a round, acknowledged as accepted, is refused after all, by the code."""

    def withdraw(self, ids: Iterable[str]) -> None:
        """Wait no more for these replies, and tell the sites so."""

    def traffic(self) -> Traffic | None:
        """Return what has moved so far; None where nobody counts."""

    def pause(self, seconds: float) -> None:
        """Return after so many seconds, or at once where the run is to stop.

        Raises:
            RunStopped: it is to stop.
        """
