"""What a connection is to send to its site: as much as a site may leave unread, and no more."""

import asyncio

from fedlora.v1 import session_pb2

Response = session_pb2.ConnectResponse | str

MOST_UNREAD = 256
UNREAD = "unread"


class Outgoing:
    """The responses of one connection that wait to be sent, or the code with which it is to end.

    Where a site reads nothing they grow to `MOST_UNREAD`, and are then forgotten for the code "unread": a new
    connection is sent whatever still counts.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Queue[Response] = asyncio.Queue()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def send(self, response: Response) -> None:
        """Have a response sent, or the connection ended; from any thread."""
        self._loop.call_soon_threadsafe(self.put, response)

    def put(self, response: Response) -> None:
        """Do so in the event loop."""
        if self._waiting.qsize() >= MOST_UNREAD:
            while not self._waiting.empty():
                self._waiting.get_nowait()
            response = UNREAD
        self._waiting.put_nowait(response)
        if self._waiting.qsize() > MOST_UNREAD // 2:
            self._has_room.clear()

    async def next(self, *, seconds: float) -> Response:
        """Return the next of them.

        Raises:
            TimeoutError: there is none within so many seconds.
        """
        response = await asyncio.wait_for(self._waiting.get(), seconds)
        if self._waiting.qsize() <= MOST_UNREAD // 2:
            self._has_room.set()
        return response

    async def room(self) -> None:
        """Return once the site has read enough for its next message to be taken: that may be answered."""
        await self._has_room.wait()
