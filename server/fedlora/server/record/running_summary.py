"""What is known of a run at one moment, in one value that each event renews; what shows a run draws this.

An event costs as much in the last round as in the first: of the rounds so far there are sums and their latest numbers.
"""

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from fedlora.common.messages import Score
from fedlora.server.record.best_round import scores_in
from fedlora.server.record.events import (
    AdapterFetched,
    CallsRefused,
    DiskSpace,
    Enrolled,
    EvaluationStarted,
    Event,
    Noted,
    NotPublished,
    RoundEnded,
    RoundStarted,
    RunStarted,
    ScoreNotFinite,
    SiteChanged,
    SitesDescribed,
    UpdateArrived,
    Waiting,
)
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import is_of_tokens, mean_loss, round_seconds

NUM_LATEST = 24


@dataclass(frozen=True)
class Course:
    """How a number went from round to round: its first value, and its latest ones, at most `NUM_LATEST`."""

    first: float = math.nan
    latest: tuple[float, ...] = ()

    def then(self, value: float) -> "Course":
        """Return the course with one value more."""
        return Course(self.first if self.latest else value, (*self.latest, value)[-NUM_LATEST:])


@dataclass(frozen=True)
class Totals:
    """Of all rounds that are over: how many trained, updates, adapter bytes, and seconds of those that trained."""

    rounds: int = 0
    accepted: int = 0
    refused: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def then(self, report: RoundReport) -> "Totals":
        """Return the totals with one round more; the start is no round that trained."""
        has_trained = report.round > 0
        return Totals(
            self.rounds + has_trained,
            self.accepted + len(report.clients),
            self.refused + len(report.refused),
            self.bytes_down + report.bytes_down,
            self.bytes_up + report.bytes_up,
            self.seconds + has_trained * round_seconds(report),
            self.evaluation_seconds + has_trained * report.seconds.get("evaluation", 0.0),
        )


@dataclass(frozen=True)
class Validation:
    """The clients' own validation of each round's adapter, where it is known and finite.

    An adapter is judged in the round after it, and after the last round by those that were asked for it. That last
    score may still be replaced, by a run that goes on.

    Attributes:
        losses: of the rounds that are judged for good.
        lowest: of those, with the first round that has it.
        last: the last round's loss and its number, where it has been asked for.
    """

    losses: Course = field(default_factory=Course)
    lowest: tuple[float, int] | None = None
    last: tuple[float, int] | None = None

    def then(self, report: RoundReport) -> "Validation":
        """Return what is known after one round more."""
        scores = scores_in(report)
        judged, last = (_finite_loss(scores.get(number), number) for number in (report.round - 1, report.round))
        judged = judged if report.round - 1 in scores else self.last
        if judged is None:
            return replace(self, last=last)
        lowest = judged if self.lowest is None else min(self.lowest, judged)
        return Validation(self.losses.then(judged[0]), lowest, last)

    @property
    def course(self) -> Course:
        """The losses, with that of the last round."""
        return self.losses if self.last is None else self.losses.then(self.last[0])

    @property
    def best(self) -> tuple[float, int] | None:
        """The lowest loss and its round; None where fewer than two rounds are judged, so that there is no choice."""
        if len(self.course.latest) < 2:
            return None
        return min(found for found in (self.lowest, self.last) if found is not None)


@dataclass(frozen=True)
class RunningSummary:
    """What is known of a run at one moment.

    Attributes:
        clients, num_rounds: empty and 0 until the run has started.
        phase: what is going on, in a word or two: "starting", "training", "averaging", "evaluating", "between rounds",
            and "finished" or "stopped" at the end.
        round: at work, or the next one; 0 before.
        cohort: the clients of the newest round that began.
        waiting, accepted, refused: those of them that have not answered, that have, and why the others are refused.
        num_refused, last_refused: of the whole run; the last as round, client, reason.
        sites: of a deployment, by name: state and detail.
        waiting_for: what the run waits for, in words; empty while it does not.
        last: the newest round that is over.
        start_evaluation_seconds: of the evaluation at the start.
        totals, validation: of the rounds that are over.
        scores, held_out_losses: on the held-out set.
        losses: the clients' mean training loss.
        is_of_tokens: whether scores are means over tokens, as a language model's are.
        disk: of a deployment whose disk is too full; None while it is not.
    """

    clients: tuple[str, ...] = ()
    num_rounds: int = 0
    phase: str = "starting"
    round: int = 0
    cohort: tuple[str, ...] = ()
    waiting: frozenset[str] = frozenset()
    accepted: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    num_refused: int = 0
    last_refused: tuple[int, str, str] | None = None
    sites: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    waiting_for: str = ""
    last: RoundReport | None = None
    start_evaluation_seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)
    validation: Validation = field(default_factory=Validation)
    scores: Course = field(default_factory=Course)
    held_out_losses: Course = field(default_factory=Course)
    losses: Course = field(default_factory=Course)
    is_of_tokens: bool = False
    disk: DiskSpace | None = None

    @property
    def last_trained(self) -> RoundReport | None:
        """The newest round that is over in which clients trained."""
        return self.last if self.last is not None and self.last.round > 0 else None

    @property
    def answered_share(self) -> float:
        """The share of a round in progress that is done, below 1: who has answered, and the averaging after them."""
        is_over = self.last is not None and self.last.round >= self.round
        return 0.0 if is_over else (len(self.cohort) - len(self.waiting)) / (len(self.cohort) + 1)


Picture = Callable[[Event, RunningSummary, RunningSummary], None]
"""Shows an event of a run, given the summaries before and after it."""


def updated(summary: RunningSummary, event: Event) -> RunningSummary:
    """Return what is known after an event."""
    match event:
        case RunStarted():
            started = after_rounds(event.reports)
            return replace(
                started,
                clients=event.clients,
                num_rounds=event.num_rounds,
                round=event.reports[-1].round if event.is_over else event.next_round,
                phase="finished" if event.is_over else "starting",
                sites=summary.sites,
            )
        case RoundStarted():
            begun = replace(summary, round=event.round, cohort=event.cohort, accepted=event.recovered, refused={})
            waiting = frozenset(event.cohort) - frozenset(event.recovered)
            return replace(begun, waiting=waiting, waiting_for="", phase="training")
        case UpdateArrived():
            waiting = summary.waiting - {event.client}
            answered = replace(summary, waiting=waiting, phase="training" if waiting else "averaging")
            if not event.reason:
                return replace(answered, accepted=(*summary.accepted, event.client))
            refused = {**summary.refused, event.client: event.reason}
            accepted = tuple(client for client in summary.accepted if client != event.client)
            answered = _with_refusals(answered, event.round, new_refusals(summary, event))
            return replace(answered, accepted=accepted, refused=refused)
        case EvaluationStarted():
            return replace(summary, round=event.round, phase="evaluating")
        case RoundEnded(report=report):
            refused = new_refusals(summary, event)
            over = _after_round(_with_refusals(summary, report.round, refused), report)
            phase = "finished" if report.round == summary.num_rounds or report.ended_early else "between rounds"
            refused = {**summary.refused, **refused}
            return replace(over, round=report.round, refused=refused, waiting=frozenset(), phase=phase)
        case SiteChanged():
            return replace(summary, sites={**summary.sites, event.site: (event.state, event.detail)})
        case Waiting():
            return replace(summary, waiting_for=event.what)
        case DiskSpace():
            return replace(summary, disk=event if event.is_short else None)
        case Noted() | SitesDescribed() | Enrolled() | CallsRefused() | AdapterFetched() | NotPublished():
            return summary
        case ScoreNotFinite():
            return summary


def after_rounds(reports: Iterable[RoundReport]) -> RunningSummary:
    """Return what is known of a run of which nothing is heard but the rounds that are over."""
    summary = RunningSummary()
    for report in reports:
        summary = _after_round(_with_refusals(summary, report.round, report.refused), report)
    return replace(summary, round=0 if summary.last is None else summary.last.round)


def new_refusals(summary: RunningSummary, event: UpdateArrived | RoundEnded) -> dict[str, str]:
    """Return by client why its update is refused, as far as the event tells it first.

    Who never answered is refused without an event of its own, when the round ends.
    """
    if isinstance(event, UpdateArrived):
        return {event.client: event.reason} if event.reason else {}
    return {client: why for client, why in event.report.refused.items() if summary.refused.get(client) != why}


def ended(summary: RunningSummary) -> RunningSummary:
    """Return the summary of a run that nobody is at work on any more."""
    return summary if summary.phase == "finished" else replace(summary, phase="stopped")


class Summarised:
    """A listener that keeps the summary, and has each event shown by some pictures; it may be called from any thread.

    Attributes:
        summary: what is known.
    """

    def __init__(self, pictures: Iterable[Picture], *, known: RunningSummary | None = None) -> None:
        """`known` is the summary before the first event, of a run that goes on."""
        self.summary = known or RunningSummary()
        self._pictures = tuple(pictures)
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            before, self.summary = self.summary, updated(self.summary, event)
            for show in self._pictures:
                show(event, before, self.summary)


def _after_round(summary: RunningSummary, report: RoundReport) -> RunningSummary:
    held_out = None if report.held_out is None else report.held_out.overall
    return replace(
        summary,
        last=report,
        start_evaluation_seconds=(
            report.seconds.get("evaluation", 0.0) if report.round == 0 else summary.start_evaluation_seconds
        ),
        totals=summary.totals.then(report),
        validation=summary.validation.then(report),
        scores=summary.scores if held_out is None else summary.scores.then(held_out.metric),
        held_out_losses=summary.held_out_losses if held_out is None else summary.held_out_losses.then(held_out.loss),
        losses=summary.losses.then(mean_loss(report)) if report.round > 0 else summary.losses,
        is_of_tokens=summary.is_of_tokens or is_of_tokens([report]),
    )


def _with_refusals(summary: RunningSummary, number: int, refused: Mapping[str, str]) -> RunningSummary:
    if not refused:
        return summary
    client, reason = list(refused.items())[-1]
    num_refused = summary.num_refused + len(refused)
    return replace(summary, num_refused=num_refused, last_refused=(number, client, reason))


def _finite_loss(score: Score | None, number: int) -> tuple[float, int] | None:
    return None if score is None or not math.isfinite(score.loss) else (score.loss, number)
