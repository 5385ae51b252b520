"""What tells an open page that something has changed: server-sent events, one a change, for so many pages at a time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

MOST_STREAMS = 32
_SECONDS_BETWEEN = 1.0
# So that a way in between, and this server, see who is gone.
_QUIET_LOOKS = 15

Marks = Callable[[], Mapping[str, str]]
"""Returns for each part of a page a text that changes whenever it does."""


class _Stream(StreamingResponse):
    """A stream of events that says when it is over, however it ends."""

    def __init__(self, content: AsyncIterator[str], closed: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._closed()


class LiveEvents:
    """Counts the streams that are open, and ends them where the server does."""

    def __init__(self, is_closing: Callable[[], bool], *, most: int = MOST_STREAMS) -> None:
        self._is_closing = is_closing
        self._most = most
        self._num_open = 0

    def response(self, request: Request, marks: Marks) -> Response:
        """Return the stream of changes; the event's id is the state, so that who comes back hears only what is new."""
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        if self._num_open >= self._most:
            said = f"{self._most} pages are watching already; this one does not update itself\n"
            return PlainTextResponse(said, 503, {"Retry-After": "30"})
        self._num_open += 1
        return _Stream(self._stream(marks, request.headers.get("last-event-id", "")), self._closed)

    def _closed(self) -> None:
        self._num_open -= 1

    async def _stream(self, marks: Marks, known: str) -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        num_quiet = 0
        while not self._is_closing():
            found = await run_in_threadpool(marks)
            if (state := ".".join(found.values())) != known:
                known, num_quiet = state, 0
                yield f"id: {state}\ndata: {json.dumps(dict(found))}\n\n"
            elif (num_quiet := num_quiet + 1) % _QUIET_LOOKS == 0:
                yield ": nothing new\n\n"
            await asyncio.sleep(_SECONDS_BETWEEN)
