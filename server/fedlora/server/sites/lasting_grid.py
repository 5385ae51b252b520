"""What our Grid over connections can do beyond Flower's: its nodes come and go, and answers are acknowledged."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from flwr.app import Message

from fedlora.common.messages import SiteDescription
from fedlora.server.sites.contract import Traffic


@runtime_checkable
class LastingGrid(Protocol):
    """A Grid over connections that break and come back, of sites that are known by name."""

    def node_of(self, site: str) -> int:
        """Return the node id of a site, which is the same in every process."""

    def descriptions(self) -> Mapping[str, SiteDescription]:
        """Return what the sites that are ready say of themselves."""

    def turn_away(self, site: str, code: str) -> None:
        """Count a site as not ready, by the code of what keeps it from taking part, and tell it so."""

    def push_messages(self, messages: Iterable[Message], /) -> Iterable[str]:
        """Send Flower's messages, and return an id for each."""

    def pull_messages(self, message_ids: Iterable[str], /) -> Iterable[Message]:
        """Return the replies that are there; where none is, after a short wait for one."""

    def seconds_away(self) -> Mapping[str, float]:
        """Return for how long each known site has not been there, in seconds.

        It is 0 for one that takes part, and infinite for one that is there and takes none.
        """

    def acknowledge(self, message_id: str, refusal: str) -> None:
        """Tell the site that its answer to a message is on disk, or that it was refused, by the reason's code."""

    def take_back(self, site: str, round: int, refusal: str) -> None:
        """Tell a site, now or when it is back, that its accepted update of a round is refused after all."""

    def withdraw(self, message_ids: Iterable[str]) -> None:
        """Wait no more for the answers to these messages, and tell the sites so."""

    def traffic(self) -> Traffic:
        """Return what has moved so far."""

    def pause(self, seconds: float) -> None:
        """Return after `seconds`, or at once where the run is to stop.

        Raises:
            RunStopped: it is to stop.
        """
