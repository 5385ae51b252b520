"""The updates of one round: its clients are asked, and what they answer is taken in until the round is over."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from fedlora.adapters import Adapter
from fedlora.adapters.moments import Moments, Sharing
from fedlora.common.config import RunConfig
from fedlora.common.messages import PRIVACY_BUDGET, TrainReceipt
from fedlora.common.packed_file import wire_bytes
from fedlora.common.reasons import update_reason
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.draw import Draw
from fedlora.server.record.events import Listener, RoundStarted
from fedlora.server.rounds.draw import drawn_again, first_draw
from fedlora.server.rounds.ending import adaptive_deadline, default_deadline, is_over, quorum_size, why_missing
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.inquiry import Addressed, Deadline, Inquiry, never
from fedlora.server.rounds.intake import Intake
from fedlora.server.rounds.late import LateUpdates
from fedlora.server.rounds.misses import Misses
from fedlora.server.rounds.starts import Start, Starts

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 60.0


@dataclass(frozen=True)
class Collected:
    """The updates of a round that count with their receipts, and why the others do not.

    Attributes:
        cohort: who was asked.
        answered: by client, the seconds from the round's begin to its answer.
        moments: of the clients' optimisers, by client, where the run shares them.
        flags: what is out of the ordinary about updates that count, by client, in a word of `FLAGS`.
        bytes_down, bytes_up: of adapters and moments as the messages hold them, without former ones that clients have.
        storing_seconds: of the time, what writing took.
    """

    cohort: Sequence[str] = ()
    updates: Mapping[str, Adapter] = field(default_factory=dict)
    receipts: Mapping[str, TrainReceipt] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    answered: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    storing_seconds: float = 0.0
    moments: Mapping[str, Moments] = field(default_factory=dict)


class Collector:
    """Collects the updates of round after round."""

    def __init__(self, config: RunConfig, folder: RunFolder, *, by_factors: bool, listener: Listener) -> None:
        """`by_factors`: whether updates are also compared by A and B, and not by their products alone."""
        self._config = config
        self._folder = folder
        self._by_factors = by_factors
        self._listener = listener
        self._late = LateUpdates()
        self._misses = Misses()

    def collect(self, federation: Federation, number: int, starts: Starts, *, needed: Mapping[str, float]) -> Collected:
        """Return the round's updates: those that an earlier process journaled, and the others as they arrive.

        Where sites come and go, a round below its quorum is repeated, after a pause, until it has one. Those whose
        privacy budget is spent count for no quorum, and are drawn no more; there is no update where nobody is left.

        Args:
            needed: by client, the seconds that its last answer took.

        Raises:
            RunError: the round stayed below its quorum, and nobody could come who is not there.
        """
        settings = self._config.federation
        intake = Intake(
            number,
            self._folder,
            federation.link,
            self._listener,
            described=lambda client: federation.sites[client],
            weighs_tokens=settings.weighting == "tokens",
            is_own_task=self._config.task.kind == "own",
            sharing=self._sharing(federation),
        )

        def start_of(client: str) -> Start:
            return starts.for_rank(federation.sites[client].lora_rank)

        pause = FIRST_PAUSE_SECONDS
        for repetition in count():
            draw = self._drawn(federation, number, intake.clients, repetition)
            if not repetition:
                for client, receipt in self._folder.accepted(number).items():
                    intake.recover(receipt, start_of(client))
            self._ask(federation, number, draw, intake, start_of, needed)
            self._take_late(federation, intake, start_of)
            if self._config.privacy.unit != "client":  # Else one client's update would decide on another's.
                intake.refuse_outliers(settings.norm_limit, by_factors=self._by_factors)
            spent = {client for client, reason in intake.refused.items() if update_reason(reason) == PRIVACY_BUDGET}
            federation.note_spent(spent)
            num_able = min(draw.num_wanted, len(draw.cohort) - len(spent))
            least = quorum_size(num_able, settings.quorum)
            if len(intake.clients) >= least or not federation.has_budget:
                break
            if num_able == 0 and federation.available(without=federation.spent):
                continue
            reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(intake.refused.items()))
            federation.wait_for(
                f"round {number} has {len(intake.clients)} of the {least} updates of its quorum ({reasons}); "
                f"repeated in {pause:.0f} s",
                seconds=pause,
                hopeless=f"round {number}: {len(intake.clients)} of {len(draw.cohort)} updates were accepted, fewer "
                f"than federation.quorum = {settings.quorum:g} asks for ({reasons})",
            )
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return _collected(draw, intake, lambda client: starts.bytes_down(client, federation.sites[client].lora_rank))

    def _sharing(self, federation: Federation) -> Sharing | None:
        """Return what moments come beside the updates; None for none."""
        train = self._config.train
        largest = max((site.num_examples for site in federation.sites.values()), default=0)
        return Sharing(train.shared_moments, train.most_steps(largest)) if train.shared_moments else None

    def _drawn(self, federation: Federation, number: int, kept: Collection[str], repetition: int) -> Draw:
        """Return whom to ask: as journaled, or drawn and journaled before any of them is asked."""
        settings, seed = self._config.federation, self._config.run.seed
        known = self._folder.draw(number)
        if known is not None and not repetition:
            return known
        unable = {*self._late.busy, *federation.spent}
        available = federation.expected(settings.patience, without={*unable, *kept})
        if known is not None:
            draw = drawn_again(known, kept=kept, available=available, seed=seed, round=number, repetition=repetition)
        else:
            while not available:
                what = f"round {number}: no site is ready"
                federation.wait_for(what, seconds=0.2, hopeless=what)
                available = federation.expected(settings.patience, without=unable)
            draw = first_draw(
                available,
                size=settings.cohort,
                fraction=settings.fraction,
                oversample=settings.oversample,
                seed=seed,
                round=number,
            )
        self._folder.write_draw(number, draw)
        return draw

    def _ask(
        self,
        federation: Federation,
        number: int,
        draw: Draw,
        intake: Intake,
        start_of: Callable[[str], Start],
        needed: Mapping[str, float],
    ) -> None:
        """Ask the clients whose update is not there, and take their answers until the round is over."""
        patience = self._config.federation.patience
        intake.refused.clear()
        federation.go_on()
        self._listener(RoundStarted(number, draw.cohort, tuple(intake.clients)))
        asked = {client: start_of(client) for client in draw.cohort if client not in intake.clients}
        requests = {client: Addressed(client, start.asked) for client, start in asked.items()}
        deadline = self._deadline(federation, draw.cohort, needed, intake.answered)
        inquiry = Inquiry(federation.link, requests, expected=TrainReceipt, deadline=deadline)

        def over(waiting: Collection[str]) -> bool:
            return is_over(
                len(intake.clients),
                draw.num_wanted,
                seconds_away=map(federation.seconds_away, waiting),
                patience=patience,
            )

        for answer in inquiry.answers(over):
            intake.take(answer, asked[answer.key])
        self._misses.note(answered=requests.keys() - inquiry.waiting, missed=inquiry.waiting - inquiry.in_time)
        for client in inquiry.waiting:
            intake.refused[client] = why_missing(
                len(intake.clients), draw.num_wanted, seconds_away=federation.seconds_away(client)
            )
        if self._config.federation.late == "next_round":
            self._late.leave(inquiry, asked)
        else:
            inquiry.withdraw()

    def _take_late(self, federation: Federation, intake: Intake, start_of: Callable[[str], Start]) -> None:
        """Take the updates that have come of earlier rounds, unless the client has one in this round too."""
        for answer, request in self._late.arrived():
            self._misses.note(answered=[answer.key], missed=())
            if answer.key in intake.clients or answer.key not in federation.sites:
                federation.link.acknowledge(answer.reply_id, "late")
            else:
                intake.take(answer, replace(start_of(answer.key), request=request))

    def _deadline(
        self,
        federation: Federation,
        cohort: Sequence[str],
        needed: Mapping[str, float],
        answered: Mapping[str, float],
    ) -> Deadline:
        """Return for how long the round waits for each client, by what each needed last and what more is known of."""
        settings = self._config.federation
        seconds: float | None
        if settings.deadline == "adaptive":
            known = [needed[client] for client in cohort if client in needed]
            seconds = adaptive_deadline(known, settings.deadline_deviations)
        else:
            seconds = settings.deadline
        if seconds is not None:
            return lambda _client: seconds
        if federation.link.are_fixed:
            return never
        # As answers come, more is known of what is usual.
        return lambda client: default_deadline([*{**needed, **answered}.values()], num_missed=self._misses.of(client))


def _collected(draw: Draw, intake: Intake, bytes_for: Callable[[str], int]) -> Collected:
    cohort = tuple(dict.fromkeys((*draw.cohort, *intake.clients)))
    return Collected(
        cohort,
        intake.updates,
        intake.receipts,
        intake.refused,
        intake.answered,
        intake.flags,
        bytes_down=sum(map(bytes_for, cohort)),
        bytes_up=sum(wire_bytes(receipt.adapter) for receipt in intake.receipts.values()),
        storing_seconds=intake.storing_seconds,
        moments=intake.moments,
    )
