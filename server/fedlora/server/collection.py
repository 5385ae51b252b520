"""The updates of one round: who is asked, what comes back, who does not count, and when the round is over."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedlora.adapters import Adapter, pack
from fedlora.common.config import RunConfig
from fedlora.common.messages import Failure, TrainReceipt, TrainRequest
from fedlora.common.packed_file import wire_bytes
from fedlora.common.phases import announce
from fedlora.methods import Method, RoundPlan
from fedlora.server import rounds
from fedlora.server.admission import Refusal, admit, is_unchanged, outliers
from fedlora.server.conversation import Addressed, Answer, Inquiry
from fedlora.server.events import Listener, RoundStarted, UpdateArrived
from fedlora.server.federation import Federation
from fedlora.server.store import Plan, RunFolder

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 2.0, 60.0


@dataclass(frozen=True)
class Collected:
    """The updates of a round that count with their receipts, and why the others do not.

    Attributes:
        cohort: who was asked.
        answered: by client, the seconds from the round's begin to its answer.
        bytes_down, bytes_up: adapter bytes as the messages hold them.
        storing_seconds: of the time, what writing took.
    """

    cohort: Sequence[str] = ()
    updates: Mapping[str, Adapter] = field(default_factory=dict)
    receipts: Mapping[str, TrainReceipt] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    answered: Mapping[str, float] = field(default_factory=dict)
    unchanged: Collection[str] = ()
    bytes_down: int = 0
    bytes_up: int = 0
    storing_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class _Late:
    """A round that went on without these clients, whose updates still count when they come."""

    inquiry: Inquiry[TrainReceipt]
    requests: Mapping[str, Callable[[int], TrainRequest]]


class Collector:
    """Collects the updates of round after round."""

    def __init__(
        self, config: RunConfig, method: Method, folder: RunFolder, *, by_factors: bool, listener: Listener
    ) -> None:
        """`by_factors`: whether updates are also compared by A and B, and not by their products alone."""
        self._config = config
        self._method = method
        self._folder = folder
        self._by_factors = by_factors
        self._listener = listener
        self._late: list[_Late] = []

    def collect(
        self, federation: Federation, number: int, start: Adapter, plan: RoundPlan, *, needed: Mapping[str, float]
    ) -> Collected:
        """Return the round's updates: those that an earlier process journaled, and the others as they arrive.

        Where sites come and go, a round below its quorum is repeated, after a pause, until it has one.

        Args:
            start: the adapter that the round starts from.
            needed: by client, the seconds that its last answer took.

        Raises:
            RunError: the round stayed below its quorum, and nobody could come who is not there.
        """
        gathering = _Gathering(self, federation, number, start, plan)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            gathering.ask(needed)
            self._take_late(gathering)
            gathering.refuse_outliers(self._config.federation.norm_limit, by_factors=self._by_factors)
            quorum = self._config.federation.quorum
            least = rounds.quorum_size(gathering.plan.num_wanted, quorum)
            if len(gathering.updates) >= least:
                return gathering.collected()
            reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(gathering.refused.items()))
            federation.wait_for(
                f"round {number} has {len(gathering.updates)} of the {least} updates of its quorum ({reasons}); "
                f"repeated in {pause:.0f} s",
                seconds=pause,
                hopeless=f"round {number}: {len(gathering.updates)} of {len(gathering.plan.cohort)} updates were "
                f"accepted, fewer than federation.quorum = {quorum:g} asks for ({reasons})",
            )
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def leave(self, inquiry: Inquiry[TrainReceipt], requests: Mapping[str, Callable[[int], TrainRequest]]) -> None:
        """Go on without those that have not answered: their late updates are discarded, or count in a later round."""
        if self._config.federation.late == "next_round" and inquiry.waiting:
            self._late.append(_Late(inquiry, requests))
        else:
            inquiry.withdraw()

    @property
    def busy(self) -> set[str]:
        """The clients that still work for an earlier round."""
        return {client for late in self._late for client in late.inquiry.waiting}

    def _take_late(self, gathering: "_Gathering") -> None:
        for late in self._late:
            for answer in late.inquiry.poll():
                gathering.take_late(answer, late.requests[answer.key](answer.attempt))
        self._late = [late for late in self._late if late.inquiry.waiting]


class _Gathering:
    """One round as it comes together."""

    def __init__(
        self, collector: Collector, federation: Federation, number: int, start: Adapter, plan: RoundPlan
    ) -> None:
        self._collector = collector
        self._config = collector._config
        self._folder = collector._folder
        self._listener = collector._listener
        self._federation = federation
        self._number = number
        self._start = start
        self._round_plan = plan
        self._began = time.monotonic()
        self._by_rank: dict[int, tuple[Adapter, bytes]] = {}
        self._starts: dict[str, Adapter] = {}
        self._requests: dict[str, Callable[[int], TrainRequest]] = {}
        self._packed_bytes: dict[str, int] = {}
        self.plan = Plan((), 0)
        self.updates: dict[str, Adapter] = {}
        self.receipts: dict[str, TrainReceipt] = {}
        self.refused: dict[str, str] = {}
        self.unchanged: set[str] = set()
        self._answered: dict[str, float] = {}
        self._storing_seconds = 0.0
        self._num_asked = 0

    def ask(self, needed: Mapping[str, float]) -> None:
        """Ask the round's clients, and take their answers until enough are here or the time is over."""
        self.plan = self._planned()
        self._prepare(self.plan.cohort)
        if self._num_asked == 0:
            for client, receipt in self._folder.accepted(self._number).items():
                self._take(client, receipt.attempt, receipt)
        self._num_asked += 1
        self.refused.clear()
        self._listener(RoundStarted(self._number, self.plan.cohort, tuple(self.updates)))
        asked = {
            client: Addressed(client, self._requests[client])
            for client in self.plan.cohort
            if client not in self.updates
        }
        inquiry = Inquiry(self._federation.link, asked, expected=TrainReceipt)
        deadline = self._deadline(needed)
        for answer in inquiry.answers(lambda waiting: self._is_over(waiting, deadline)):
            self._admit(answer)
        for client in inquiry.waiting:
            self.refused[client] = self._why_missing(client)
        self._collector.leave(inquiry, self._requests)

    def take_late(self, answer: Answer[TrainReceipt], request: TrainRequest) -> None:
        """Take an update of an earlier round into this one."""
        client, content = answer.key, answer.content
        if client in self.updates or client not in self._federation.sites:
            self._federation.link.acknowledge(answer.reply_id, "late")
            return
        self._prepare([client])
        self._requests[client] = lambda attempt: replace(request, attempt=attempt)
        self._admit(Answer(client, answer.attempt, content, answer.reply_id))

    def refuse_outliers(self, limit: float, *, by_factors: bool) -> None:
        """Refuse the updates that have moved very much further than the others."""
        for client, outlier in outliers(
            self.updates, references=self._starts, norm_limit=limit, by_factors=by_factors
        ).items():
            del self.updates[client]
            self.refused[client] = str(outlier)
            receipt = self.receipts.pop(client)
            self._folder.quarantine(self._number, receipt, str(outlier))
            self._listener(UpdateArrived(self._number, client, self.refused[client], receipt.loss))

    def collected(self) -> Collected:
        """Return what has come together."""
        cohort = tuple(dict.fromkeys((*self.plan.cohort, *self.updates)))
        down = sum(self._packed_bytes[client] for client in cohort)
        up = sum(wire_bytes(receipt.adapter) for receipt in self.receipts.values())
        return Collected(
            cohort,
            self.updates,
            self.receipts,
            self.refused,
            self._answered,
            self.unchanged,
            bytes_down=down,
            bytes_up=up,
            storing_seconds=self._storing_seconds,
        )

    def _planned(self) -> Plan:
        """Return whom to ask: as journaled, or drawn and journaled before any of them is asked."""
        settings, known = self._config.federation, self._folder.plan(self._number)
        if known is not None and self._num_asked == 0:
            return known
        patience = settings.patience
        available = self._federation.expected(patience, without=self._collector.busy | self.updates.keys())
        if known is not None:
            # Repeated: those that count stay, and the others are drawn anew among who is there, or else asked again.
            missing = [client for client in known.cohort if client not in self.updates]
            size = max(1, len(known.cohort) - len(self.updates))
            drawn = missing if set(missing) <= set(available) else available
            purpose = f"cohort, repetition {self._num_asked}"
            again = rounds.cohort(
                drawn or missing, size=size, seed=self._config.run.seed, round=self._number, purpose=purpose
            )
            plan = Plan(tuple(sorted({*self.updates, *again})), known.num_wanted)
        else:
            while not available:
                what = f"round {self._number}: no site is ready"
                self._federation.wait_for(what, seconds=0.2, hopeless=what)
                available = self._federation.expected(patience, without=self._collector.busy)
            wanted = settings.cohort or rounds.share(settings.fraction, len(available))
            wanted = min(wanted, len(available))
            size = min(len(available), math.ceil(wanted * settings.oversample - 1e-9))
            plan = Plan(rounds.cohort(available, size=size, seed=self._config.run.seed, round=self._number), wanted)
        self._folder.write_plan(self._number, plan)
        return plan

    def _prepare(self, clients: Sequence[str]) -> None:
        """Make ready what each client starts from: the global adapter, at its own rank where that is smaller."""
        for client in clients:
            rank = self._federation.sites[client].lora_rank
            if rank not in self._by_rank:
                given = rounds.for_rank(self._start, rank, method=self._collector._method)
                self._by_rank[rank] = given, pack(given)
            given, packed = self._by_rank[rank]
            self._starts[client] = given
            self._requests[client] = self._train_requests(packed)
            self._packed_bytes[client] = len(packed)

    def _train_requests(self, packed: bytes) -> Callable[[int], TrainRequest]:
        """Return what makes the round's request for an attempt."""
        config = self._config
        request = TrainRequest(
            run=self._federation.run_id,
            round=self._number,
            attempt=0,
            seed=config.run.seed,
            num_rounds=config.federation.rounds,
            validation_examples=config.evaluation.client_examples,
            trains=self._round_plan.trains,
            adapter=packed,
        )
        return lambda attempt: replace(request, attempt=attempt)

    def _admit(self, answer: Answer[TrainReceipt]) -> None:
        """Take an answer, have it on disk if it counts, and only then tell the site."""
        client, content = answer.key, answer.content
        refusal = self._take(client, answer.attempt, content)
        self._answered[client] = time.monotonic() - self._began
        if refusal is None:
            writing = time.perf_counter()
            announce("accept")
            self._folder.write_accepted(self._number, self.receipts[client])
            self._storing_seconds += time.perf_counter() - writing
            self.refused.pop(client, None)
        else:
            self.refused[client] = str(refusal)
            if isinstance(content, TrainReceipt):
                self._folder.quarantine(self._number, content, str(refusal))
        self._federation.link.acknowledge(answer.reply_id, "" if refusal is None else refusal.code)
        loss = content.loss if isinstance(content, TrainReceipt) else math.nan
        self._listener(UpdateArrived(self._number, client, self.refused.get(client, ""), loss))

    def _take(self, client: str, attempt: int, content: TrainReceipt | Failure) -> Refusal | None:
        if isinstance(content, Failure):
            return Refusal(content.code, content.text)
        if client not in self._requests:
            self._prepare([client])
        request = self._requests[client](attempt)
        if content.round < self._number:  # A late one, from the journal.
            request = replace(request, round=content.round)
        admitted = admit(
            content,
            request=request,
            client=client,
            reference=self._starts[client],
            weighs_tokens=self._config.federation.weighting == "tokens",
        )
        if isinstance(admitted, Refusal):
            return admitted
        self.updates[client], self.receipts[client] = admitted, content
        if is_unchanged(admitted, self._starts[client]):
            logger.warning("round %d: the update of %s is what it started from", self._number, client)
            self.unchanged.add(client)
        return None

    def _deadline(self, needed: Mapping[str, float]) -> float:
        """Return until when the round waits, by the monotonic clock."""
        settings = self._config.federation
        seconds: float | None
        if settings.deadline == "adaptive":
            seconds = rounds.adaptive_deadline(
                [needed[client] for client in self.plan.cohort if client in needed], settings.deadline_deviations
            )
        else:
            seconds = settings.deadline
        return math.inf if seconds is None else time.monotonic() + seconds

    def _is_over(self, waiting: Collection[str], deadline: float) -> bool:
        if len(self.updates) >= self.plan.num_wanted or time.monotonic() >= deadline:
            return True
        # The round can do without those that have been gone for long, and waits for anybody who works.
        patience = self._config.federation.patience
        return all(self._federation.seconds_away(client) > patience for client in waiting)

    def _why_missing(self, client: str) -> str:
        if len(self.updates) >= self.plan.num_wanted:
            return "not_needed"
        return "away" if self._federation.seconds_away(client) > 0 else "late"
