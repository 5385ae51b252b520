"""The calls in progress of each site, and over which connections: one site's share of the port is bounded."""

from collections import Counter
from collections.abc import Collection
from typing import Any, cast

from grpc.aio import ServicerContext

# A site has its session, a transfer, and whoever serves its adapters, over a connection or two.
MOST_OF_A_SITE = 64

_Context = ServicerContext[Any, Any]


class Calls:
    """Counts calls whose caller is known by name until they end; for the server's event loop alone."""

    def __init__(self) -> None:
        self._known: dict[_Context, tuple[str, str]] = {}
        self._of_site: Counter[str] = Counter()

    def take(self, context: _Context, site: str) -> bool:
        """Return whether a call may go on, which it may not where its site has too many; it is counted once."""
        if context in self._known:
            return True
        if self._of_site[site] >= MOST_OF_A_SITE:
            return False
        self._known[context] = site, context.peer()
        self._of_site[site] += 1
        # The stubs want an object that is called, and know no function.
        context.add_done_callback(cast(Any, self._ended))
        return True

    @property
    def peers(self) -> Collection[str]:
        """The connections that they come over, by gRPC's words for who is at the other end."""
        return {peer for _, peer in self._known.values()}

    def _ended(self, context: _Context) -> None:
        site, _ = self._known.pop(context)
        self._of_site[site] -= 1
        if not self._of_site[site]:
            del self._of_site[site]
