"""What happens at a site, told as it happens; metrics and traces listen. Nothing of it leaves the site by itself."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedlora.common.errors import FedloraError
from fedlora.common.messages import TrainReceipt

# What a request asks for; and what is done for it, each within the other.
REQUESTS = ("initialise", "train", "evaluate", "validate", "sum")
PHASES = ("rehearse", *REQUESTS, "download", "work", "upload")
BROKEN_OFF = "transfer"


@dataclass(frozen=True)
class Connected:
    """A connection to the server stands, for a run of so many rounds; `is_new`: for another than the one before."""

    num_rounds: int
    is_new: bool = True


@dataclass(frozen=True)
class Idle:
    """A connection to the server stands, which has no run for the site at present."""


@dataclass(frozen=True)
class Finished:
    """The run is over, at a server that has no other: the site is done."""


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone."""


@dataclass(frozen=True)
class StandingTold:
    """The server was told that the site takes part, or the code of what keeps it."""

    reason: str


@dataclass(frozen=True)
class Began:
    """A phase of `PHASES` has begun; of a request with its round, and the trace that the server has sent with it."""

    phase: str
    round: int = 0
    traceparent: str = ""


@dataclass(frozen=True)
class Ended:
    """The phase that has begun last is over; `code` says what went wrong, if anything did."""

    phase: str
    seconds: float
    code: str = ""


@dataclass(frozen=True)
class Trained:
    """The worker has trained; the receipt is as it leaves the site."""

    receipt: TrainReceipt


@dataclass(frozen=True)
class Moved:
    """Adapter bytes have come or gone."""

    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True)
class Settled:
    """The server has accepted an update, or refused it with a code."""

    round: int
    refusal: str


Event = Connected | Idle | Finished | Disconnected | StandingTold | Began | Ended | Trained | Moved | Settled
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


def told_to(listeners: Sequence[Listener]) -> Listener:
    """Return what tells all of them, in their order."""

    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


@contextmanager
def phase(listener: Listener, name: str, *, round: int = 0, traceparent: str = "") -> Iterator[Callable[[str], None]]:
    """Tell that a phase begins and ends; gives what takes the code of how it went wrong."""
    code = ""

    def fail(found: str) -> None:
        nonlocal code
        code = found

    listener(Began(name, round, traceparent))
    began = time.monotonic()
    try:
        yield fail
    except BaseException as error:
        # What is no error of ours and breaks a phase off is the connection.
        code = error.code if isinstance(error, FedloraError) else BROKEN_OFF
        raise
    finally:
        listener(Ended(name, time.monotonic() - began, code))
