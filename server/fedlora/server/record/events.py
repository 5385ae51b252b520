"""What happens in a run, told as it happens; the terminal view listens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedlora.common.messages import SiteDescription
from fedlora.server.record.round_report import RoundReport


@dataclass(frozen=True)
class RunStarted:
    """All clients are known. `next_round` is 1, or higher in a resumed run whose `reports` are the rounds so far.

    `is_over`: whether there is no next round: all rounds are over, or the run has ended early.
    """

    clients: tuple[str, ...]
    num_rounds: int
    next_round: int
    reports: tuple[RoundReport, ...]
    is_over: bool = False


@dataclass(frozen=True)
class RoundStarted:
    """The round's requests are out; `recovered` are the clients whose update an earlier process had accepted."""

    round: int
    cohort: tuple[str, ...]
    recovered: tuple[str, ...]


# Of an update that counts and teaches nothing: by a word, what it is.
FLAGS = {"unchanged": "what it started from", "zero": "zero, and does nothing"}


@dataclass(frozen=True)
class UpdateArrived:
    """A client answered. `reason` is empty when its update was accepted, else the refusal's code and what was found.

    Attributes:
        flag: of an accepted update that is out of the ordinary, one of `FLAGS`.
        wire_sha256: of the update as it came over the wire, hex, where it did.
    """

    round: int
    client: str
    reason: str
    loss: float
    flag: str = ""
    wire_sha256: str = ""


@dataclass(frozen=True)
class ScoreNotFinite:
    """A site has told a score of an adapter that is NaN or infinite; it does not count."""

    round: int
    site: str


@dataclass(frozen=True)
class EvaluationStarted:
    """The global adapter goes to the clients' workers for its score on the held-out set."""

    round: int


@dataclass(frozen=True)
class RoundEnded:
    """The round is on disk."""

    report: RoundReport


SITE_STATES = ("away", "starting", "ready", "at work", "not ready")


@dataclass(frozen=True)
class SiteChanged:
    """A site of a deployment came, went, or became something else; `state` is one of `SITE_STATES`.

    `detail` is a code: what keeps the site from being ready.
    """

    site: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class Waiting:
    """The run waits, and says for what; for nothing any more where that is empty."""

    what: str


@dataclass(frozen=True)
class SitesDescribed:
    """Clients have said what they hold, and what of it is left out, cut or not read; by name, the new ones alone."""

    sites: Mapping[str, SiteDescription]


@dataclass(frozen=True)
class Noted:
    """What a user should know of the run before it begins, in a line each, such as settings that do nothing."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Enrolled:
    """A site has a certificate: its first one of an invitation, or the next."""

    site: str
    address: str
    is_renewal: bool


@dataclass(frozen=True)
class CallsRefused:
    """Callers were refused, so many for one reason, its code; `site` is who they say they are, where they say it."""

    code: str
    site: str
    address: str
    num: int


@dataclass(frozen=True)
class AdapterFetched:
    """A site has begun to download a published adapter."""

    site: str
    adapter: str


@dataclass(frozen=True)
class NotPublished:
    """A round's adapter is not published, and why; it is the run's newest all the same."""

    round: int
    why: str


@dataclass(frozen=True)
class DiskSpace:
    """The run's disk has become too full, or has room again: what is free, and what the run needs."""

    folder: str
    free_bytes: int
    needed_bytes: int

    @property
    def is_short(self) -> bool:
        """Whether there is too little."""
        return self.free_bytes < self.needed_bytes


Event = (
    Noted
    | Enrolled
    | CallsRefused
    | AdapterFetched
    | NotPublished
    | DiskSpace
    | SitesDescribed
    | SiteChanged
    | Waiting
    | RunStarted
    | RoundStarted
    | UpdateArrived
    | ScoreNotFinite
    | EvaluationStarted
    | RoundEnded
)
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listen to nothing."""


class HeardSites:
    """A listener that keeps what the clients said of themselves, and tells another everything.

    Attributes:
        sites: by name, what each said last.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.sites: Mapping[str, SiteDescription] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, SitesDescribed):
            self.sites = {**self.sites, **event.sites}
        self._listener(event)
