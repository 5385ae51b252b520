"""What the Grid knows of a site: its connection, what it says of itself, and the requests that it has not answered."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import Message

from fedlora.common.messages import SiteDescription
from fedlora.server.disk.exchange import FileOnOffer, Offer
from fedlora.v1 import messages_pb2, session_pb2

# Above all attempts.
_FIRST_SUM = 1000

# Of a connection: sends a response, or ends it with a code.
Send = Callable[[session_pb2.ConnectResponse | str], None]


@dataclass(eq=False)
class Outstanding:
    """A request without an answer."""

    message: Message
    site: str
    request: session_pb2.Request
    offer: Offer | None
    is_delivered: bool = False


@dataclass(eq=False)
class KnownSite:
    """What is known of a site. `send` is its connection's, None while it has none."""

    name: str
    send: Send | None = None
    description: SiteDescription | None = None
    reason: str = ""
    gone_since: float = field(default_factory=time.monotonic)
    outstanding: dict[str, Outstanding] = field(default_factory=dict)
    # That an update of it is refused after all, which it is to hear.
    taken_back: session_pb2.ConnectResponse | None = None
    # The code for which it was sent away, and will not be back: nobody waits for it.
    shut_out: str = ""
    # Says what speaks against the certificate that it came with last.
    standing: Callable[[], str] = lambda: ""

    @property
    def is_ready(self) -> bool:
        """Whether it is there and takes part."""
        return self.send is not None and self.description is not None

    @property
    def is_away(self) -> bool:
        """Whether it has no connection, and may come back."""
        return self.send is None and not self.shut_out

    def leave(self) -> None:
        """Note that from now on it is away, if it was there: who comes and goes without being ready was never there."""
        if self.is_ready:
            self.gone_since = time.monotonic()

    @property
    def seconds_away(self) -> float:
        """For how long it has not been there; for ever where it takes no part and has nothing to finish."""
        if self.shut_out:
            return math.inf
        if self.reason and self.send is not None:
            works = any(outstanding.is_delivered for outstanding in self.outstanding.values())
            return 0.0 if works else math.inf
        return time.monotonic() - self.gone_since if self.description is None or self.send is None else 0.0

    @property
    def state(self) -> tuple[str, str]:
        """What people are told: a state of `SITE_STATES`, and a detail."""
        if self.send is None:
            return "away", self.shut_out
        if self.reason:
            return "not ready", self.reason
        if self.description is None:
            return "starting", ""
        return ("at work" if self.outstanding else "ready"), ""


def node_of(site: str) -> int:
    return int.from_bytes(hashlib.sha256(site.encode()).digest()[:8]) >> 1


def acknowledgement(request_id: str, refusal: str) -> session_pb2.ConnectResponse:
    content = session_pb2.Acknowledgement(request_id=request_id, refusal=refusal)
    return session_pb2.ConnectResponse(acknowledgement=content)


def taken_back(round: int, refusal: str) -> session_pb2.ConnectResponse:
    content = session_pb2.Acknowledgement(refusal=refusal, taken_back_round=round)
    return session_pb2.ConnectResponse(acknowledgement=content)


def place(request: session_pb2.Request) -> tuple[str, int, int]:
    """Return run, round and attempt of the file that a request asks for: of a sum's, a number of its own."""
    if request.HasField("train"):
        return request.train.run, request.train.round, request.train.attempt
    if request.HasField("sum"):
        return request.sum.run, request.sum.round, _FIRST_SUM + request.sum.index
    return ("", 0, 0) if request.HasField("initialise") else ("", -1, -1)


def offered(offer: Offer) -> messages_pb2.OfferedAdapter:
    def blob(file: FileOnOffer | None) -> messages_pb2.Blob | None:
        return (
            None if file is None else messages_pb2.Blob(sha256=bytes.fromhex(file.sha256), size_bytes=file.size_bytes)
        )

    return messages_pb2.OfferedAdapter(
        whole=blob(offer.whole), difference=blob(offer.difference), reference=blob(offer.reference)
    )
