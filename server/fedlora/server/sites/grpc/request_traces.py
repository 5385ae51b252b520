"""What the Grid tells of its requests to whoever traces them."""

from typing import Protocol


class RequestTraces(Protocol):
    """Hears of each request to a site; called from any thread, and at once back."""

    def asked(self, request_id: str, site: str, kind: str) -> str:
        """Return the place in a trace that the request carries to its site; empty for none."""

    def answered(self, request_id: str, code: str) -> None:
        """Note that an answer has come, or the code of the failure that came in its place."""

    def withdrawn(self, request_id: str) -> None:
        """Note that nobody waits for the answer any more."""


class Untraced:
    """Nobody traces them."""

    def asked(self, request_id: str, site: str, kind: str) -> str:  # noqa: ARG002
        return ""

    def answered(self, request_id: str, code: str) -> None:
        """Nothing is noted."""

    def withdrawn(self, request_id: str) -> None:
        """Nothing is noted."""
