"""The adapter that a run starts from: fresh from the run's seed as sites agree on it, or the one that the run names.

No site is taken at its word. What one gives is checked for all that the run file says of it, and counts once another
has given the same; the next ones are asked where it does not fit, where they differ, and where somebody is silent.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.adapters import Adapter
from fedlora.adapters.keys import named_tensors
from fedlora.common.config import BASE_CHANGING_INITS, RunConfig
from fedlora.common.messages import Failure, InitialiseReceipt, InitialiseRequest
from fedlora.methods import Method
from fedlora.server.rounds.admission import Refusal
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.given_start import Room, given_start
from fedlora.server.rounds.inquiry import Addressed, Answer, Inquiry
from fedlora.server.rounds.start_check import are_alike, checked_start

_PATIENCE_SECONDS = 30.0  # Any site can give it.
_HEDGE_SECONDS = 30.0  # Another is asked beside one that takes longer.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 60.0
_UNREADABLE = "unreadable"  # Of an answer that was refused where it came in.
# With which a site is turned away whose first adapter cannot be the run's.
NO_START = "no_start"


def first_adapter(federation: Federation, config: RunConfig, method: Method) -> Adapter:
    """Return the adapter to start from.

    Raises:
        RunError: no site could give one, and nobody could come who is not there.
        AdapterError: the one that the run names does not fit it.
    """
    fresh = _Search(federation, config).found()
    given = config.federation.start_from
    if given is None:
        return fresh
    starts_fresh = method.plan(1).starts_fresh
    changes_base = method.changes_base or config.lora.init in BASE_CHANGING_INITS
    return given_start(given, like=fresh, room=Room(starts_fresh, starts_fresh or changes_base))


@dataclass(frozen=True, eq=False)
class _Given:
    """What a site has given that the run could start from, and the digest of all of it."""

    adapter: Adapter
    digest: str


class _Search:
    """Asks sites for the first adapter until it is known which one it is."""

    def __init__(self, federation: Federation, config: RunConfig) -> None:
        self._federation = federation
        self._config = config
        self._request = InitialiseRequest(config.run.seed)
        self._out: dict[str, tuple[Inquiry[InitialiseReceipt], float]] = {}
        self._asked: set[str] = set()
        self._given: dict[str, _Given] = {}
        self._reasons: list[str] = []
        # Sites that are this run's own from the start to the end have no owners who could mean it ill.
        self._num_needed = 1 if federation.link.are_fixed else 2

    def found(self) -> Adapter:
        """Return the adapter.

        Raises:
            RunError: no site could give one, and nobody could come who is not there.
        """
        pause = _FIRST_PAUSE_SECONDS
        while True:
            while self._ask_more() or self._out:
                for site in list(self._out):
                    self._hear(site)
                if agreeing := self._agreeing():
                    return self._taken(agreeing)
            if close := self._close():
                return self._taken(close)
            what = self._waits_for()
            self._federation.wait_for(what, seconds=pause, hopeless=self._reasons[0] if self._reasons else what)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            # Who has given one keeps to it; everybody else may have come to their senses.
            self._asked = set(self._given)
            self._reasons = []

    def _ask_more(self) -> bool:
        """Ask the next site, unless as many are at it as are needed, and return whether one was asked."""
        slow = math.inf if self._federation.link.are_fixed else _HEDGE_SECONDS
        num_at_it = sum(time.monotonic() - began < slow for _, began in self._out.values())
        if num_at_it >= max(1, self._num_needed - len(self._given)):
            return False
        site = next((site for site in self._federation.available() if site not in self._asked), None)
        if site is None:
            return False
        self._asked.add(site)
        asked = {site: Addressed(site, lambda _attempt: self._request)}
        deadline = self._federation.answer_seconds
        inquiry = Inquiry(self._federation.link, asked, expected=InitialiseReceipt, deadline=deadline)
        self._out[site] = inquiry, time.monotonic()
        return True

    def _hear(self, site: str) -> None:
        """Take a site's answer, if it is there, and go on without it where it will not come."""
        inquiry, _ = self._out[site]
        for answer in inquiry.poll():
            self._take(site, answer)
        is_away = site not in self._federation.expected(_PATIENCE_SECONDS)
        if inquiry.in_time and not is_away:
            return
        if inquiry.waiting:
            self._reasons.append(f"{site} {'is away' if is_away else 'did not answer in time'}")
            self._federation.note(f"the first adapter: {self._reasons[-1]}")
        self._federation.misses.note(answered={site} - inquiry.waiting, missed=inquiry.waiting - inquiry.in_time)
        inquiry.withdraw()
        del self._out[site]

    def _take(self, site: str, answer: Answer[InitialiseReceipt]) -> None:
        content = answer.content
        if isinstance(content, Failure) and content.code != _UNREADABLE:
            self._reasons.append(content.words(site))
            return
        found = (
            Refusal(content.code, repr(content.text))
            if isinstance(content, Failure)
            else checked_start(content.adapter, self._config)
        )
        if isinstance(found, Refusal):
            self._reasons.append(f"the first adapter that {site} made is refused: {found}")
            if not self._federation.link.are_fixed:
                self._federation.note(self._reasons[-1])
                self._federation.link.turn_away(site, NO_START)
            return
        given = _Given(found, "" if self._num_needed == 1 else _digest(found))
        # The same is held once.
        self._given[site] = next((known for known in self._given.values() if known.digest == given.digest), given)

    def _counting(self) -> dict[str, _Given]:
        """Return what was given by sites that have not been shut out since."""
        return {
            site: given for site, given in sorted(self._given.items()) if self._federation.seconds_away(site) < math.inf
        }

    def _agreeing(self) -> Sequence[str]:
        """Return the sites that have given the same, bit for bit, once they are enough; () while there are none."""
        by_digest: dict[str, list[str]] = {}
        for site, given in self._counting().items():
            by_digest.setdefault(given.digest, []).append(site)
        return next((sites for sites in by_digest.values() if len(sites) >= self._num_needed), ())

    def _close(self) -> Sequence[str]:
        """Return sites that have given the same up to rounding, or the only one of a run that needs no other."""
        given = self._counting()
        sites = list(given)
        for place, site in enumerate(sites):
            alike = [other for other in sites[place + 1 :] if are_alike(given[site].adapter, given[other].adapter)]
            if alike:
                self._federation.note(
                    f"the first adapter: {', '.join([site, *alike])} made the same up to rounding, as different "
                    f"machines do; that of {site} is taken"
                )
                return [site, *alike]
        if len(sites) == 1 and self._config.federation.sites == 1:
            self._federation.note(f"the first adapter: {sites[0]} made it, and there is no other site to compare with")
            return sites
        return ()

    def _waits_for(self) -> str:
        names, reasons = ", ".join(self._counting()), "; ".join(self._reasons)
        match len(self._counting()):
            case 0:
                return f"no site could give the first adapter{reasons and f' ({reasons})'}"
            case 1:
                what = f"{names} made one, and no other site is there to compare it with"
            case _:
                what = f"{names} each made another; the next site that comes says which is right"
        return f"the first adapter: {what}{reasons and f' ({reasons})'}"

    def _taken(self, sites: Sequence[str]) -> Adapter:
        """Return what these sites have given, and wait for nobody else."""
        for inquiry, _ in self._out.values():
            inquiry.withdraw()
        if others := [site for site in self._counting() if site not in sites]:
            self._federation.note(
                f"the first adapter: {', '.join(sites)} made the same, and {', '.join(others)} another; theirs is taken"
            )
        return self._given[sites[0]].adapter


def _digest(adapter: Adapter) -> str:
    """Return the sha256 over every bit of an adapter."""
    digest = hashlib.sha256(json.dumps(dict(adapter.config)).encode())
    for name, tensor in named_tensors(adapter):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
