"""The calls that a run's services answer, at a server that outlasts the run: they end with it.

A caller that reads nothing holds its call up for as long as it likes. Without this it would hold the run with it: the
Grid with its requests, and the files on their way.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

Response = TypeVar("Response")
Answer = TypeVar("Answer")


class RunCalls:
    """What answers the calls of one run, until the run is over; whoever waits for it here keeps nothing of the run.

    Attributes:
        is_over: whether the run is.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whose newest response is not read yet.
        self._unread: set[AsyncGenerator[Any, None]] = set()
        self._answers: set[asyncio.Task[Any]] = set()

    async def stream(self, responses: AsyncGenerator[Response, None]) -> AsyncGenerator[Response, None]:
        """Yield responses to the last of them, or to the run's end."""
        self._loop = asyncio.get_running_loop()
        try:
            async with aclosing(responses):
                async for response in responses:
                    self._unread.add(responses)
                    if self.is_over:
                        return
                    yield response
                    self._unread.discard(responses)
        finally:
            self._unread.discard(responses)

    async def answer(self, answering: Coroutine[Any, Any, Answer]) -> Answer | None:
        """Return an answer; None where the run is over before it is there."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.create_task(answering)
        self._answers.add(task)
        if self.is_over:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if not self.is_over:
                raise
            return None
        finally:
            self._answers.discard(task)

    def end(self) -> None:
        """Let go of the run, which is over; from any thread."""
        self.is_over = True
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop)

    async def _end(self) -> None:
        for task in tuple(self._answers):
            task.cancel()
        # One that is at work, and does not wait for its reader, ends at its next response.
        for responses in tuple(self._unread):
            await responses.aclose()
