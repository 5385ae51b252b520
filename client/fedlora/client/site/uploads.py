"""What the updates of a site have cost so far: over all connections, so that a new one is no new beginning."""

import time

from fedlora.client.site.transfer import Effort

_REST_SECONDS = 600.0
_KEPT = 16


class Uploads:
    """The effort for each of the newest updates; after a long rest one begins anew, as the server may have mended."""

    def __init__(self) -> None:
        self._efforts: dict[bytes, tuple[float, Effort]] = {}

    def effort_for(self, sha256: bytes) -> Effort:
        """Return what the update of that content has cost, to be counted on."""
        now = time.monotonic()
        began, effort = self._efforts.pop(sha256, (now, Effort()))
        if now - began > _REST_SECONDS:
            began, effort = now, Effort(committed_bytes=effort.committed_bytes)
        self._efforts[sha256] = began, effort
        for oldest in list(self._efforts)[:-_KEPT]:
            del self._efforts[oldest]
        return effort
