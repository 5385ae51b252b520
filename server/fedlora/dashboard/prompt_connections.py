"""The dashboard's connections: uvicorn's, closed where nothing comes of a request, or nobody takes the answer.

There are so many at a time for all who look, and without a sign-in anybody may have them.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# For the head of a request, from its first byte on, or from when the connection was made.
_REQUEST_SECONDS = 5.0
# For as much of an answer as is written at once: an adapter's comes in chunks of 1 MiB.
_ANSWER_SECONDS = 120.0


class PromptConnection(H11Protocol):
    """A connection that does not last without a request, and whose answer is read."""

    _awaits_request: asyncio.TimerHandle | None = None
    _awaits_reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and wait on unless a request is at work by now."""
        super().data_received(data)
        # uvicorn's own wait for a next request ends with the first byte, be it of a body that nobody has asked for.
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_request()
        else:
            self._stop_waiting()

    def pause_writing(self) -> None:
        """Begin to wait for whoever reads the answer."""
        super().pause_writing()
        self._awaits_reader = self.loop.call_later(_ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Write on."""
        super().resume_writing()
        if self._awaits_reader is not None:
            self._awaits_reader.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._stop_waiting()
        if self._awaits_reader is not None:
            self._awaits_reader.cancel()

    def _wait_for_request(self) -> None:
        if self._awaits_request is None:
            self._awaits_request = self.loop.call_later(_REQUEST_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._awaits_request is not None:
            self._awaits_request.cancel()
            self._awaits_request = None
