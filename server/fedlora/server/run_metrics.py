"""A deployment's run as Prometheus metrics, made when they are asked for of what is known of it already.

Labels come from small closed sets: a phase, a state, a code. No site's name is one.
"""

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedlora.common.config import RunConfig
from fedlora.common.metric_families import Timings, by_reason, certificate_ends, counter, gauge, labelled, of_states
from fedlora.common.reasons import CALL_REASONS, UPDATE_REASONS, call_reason, update_reason
from fedlora.common.run_folder import EXCHANGE_FOLDER, ROUNDS_FILE
from fedlora.server.record.events import (
    SITE_STATES,
    CallsRefused,
    Event,
    RoundEnded,
    RoundStarted,
    ScoreNotFinite,
    UpdateArrived,
)
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.running_summary import RunningSummary, after_rounds, ended, new_refusals

PHASES = ("training", "aggregation", "evaluation", "storing", "interrupted")
RUN_STATES = ("starting", "training", "averaging", "evaluating", "between rounds", "finished", "stopped")
_FILES_ON_THEIR_WAY = ("whole", "difference", "uploads", "updates")


@dataclass
class Counts:
    """What is counted event by event, since no summary holds it.

    That is refused updates by reason, repeated rounds, and scores that were not finite.
    """

    updates_refused: Counter[str] = field(default_factory=Counter)
    num_repeated: int = 0
    num_not_finite: int = 0

    @classmethod
    def of(cls, reports: Iterable[RoundReport]) -> "Counts":
        """Return what rounds that are over have come to, as far as their reports tell."""
        return cls(Counter(update_reason(why) for report in reports for why in report.refused.values()))


class RefusedCalls:
    """How many callers and uploads were refused at a port, by reason."""

    def __init__(self) -> None:
        self._num: Counter[str] = Counter()

    def heard(self, event: Event) -> None:
        """Count an event, if it tells of refused calls."""
        if isinstance(event, CallsRefused):
            self._num[call_reason(event.code)] += event.num

    def family(self) -> Metric:
        """Return the metric."""
        return by_reason("fedlora_calls_refused", "callers and uploads refused", self._num, CALL_REASONS)


class RunMetrics(Collector):
    """Shows a run's summary at each scrape; a picture of it as the live view is another."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        reports: Sequence[RoundReport],
        certificate_of: Mapping[str, Callable[[], bytes]],
        counts: Counts | None = None,
    ) -> None:
        """Take in a run before its first event.

        Args:
            reports: of the rounds that are over, of a run that goes on.
            certificate_of: reads certificates, by whose they are; one that is not there yet is left out.
            counts: go on with what happens; without any they are the run's, and begin with its `reports`.
        """
        self._config = config
        self._folder = folder
        self._certificate_of = certificate_of
        self._summary = after_rounds(reports)
        self._timings = Timings(PHASES)
        for report in reports:
            self._time(report)
        self._counts = Counts.of(reports) if counts is None else counts
        self._calls = RefusedCalls()
        self._is_over = False
        self._last_ended = _changed(folder / ROUNDS_FILE)
        self._has_begun = False

    def show(self, event: Event, before: RunningSummary, summary: RunningSummary) -> None:
        """Take what is known after an event of the run."""
        self._summary = summary
        match event:
            case RoundStarted():
                is_repeated = before.phase in ("training", "averaging") and before.round == event.round
                self._counts.num_repeated += is_repeated
                if not self._has_begun:
                    # Between the last round and this process nobody has worked, and nothing was slow.
                    self._has_begun, self._last_ended = True, time.time()
            case UpdateArrived() | RoundEnded():
                refused = new_refusals(before, event)
                self._counts.updates_refused.update(map(update_reason, refused.values()))
            case ScoreNotFinite():
                self._counts.num_not_finite += 1
            case CallsRefused():
                self._calls.heard(event)
        if isinstance(event, RoundEnded):
            self._last_ended = time.time()
            self._time(event.report)

    def _time(self, report: RoundReport) -> None:
        for phase, seconds in report.seconds.items():
            self._timings.add(phase, seconds)

    def close(self) -> None:
        """Note that nobody is at work on the run any more."""
        self._is_over = True

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended with its last round."""
        return self._is_over and self._summary.phase == "finished"

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from self.of_the_run()
        yield self._calls.family()
        yield certificate_ends(self._certificate_of)

    def of_the_run(self) -> Iterator[Metric]:
        """Yield what is the run's, and not the port's."""
        known = _left(self._summary) if self._is_over else self._summary
        yield from self._rounds(known)
        yield from self._updates(known)
        yield from _scores(known)
        yield counter(
            "fedlora_scores_not_finite", "sites' scores that are NaN or infinite", self._counts.num_not_finite
        )
        yield from self._sites(known)
        yield from self._disk(known)

    def _rounds(self, known: RunningSummary) -> Iterator[Metric]:
        yield of_states("fedlora_run_state", "1 for what the run is at", known.phase, RUN_STATES)
        yield gauge("fedlora_run_waiting", "1 while the run waits for sites, updates or room", bool(known.waiting_for))
        yield gauge("fedlora_run_rounds", "rounds that the run file asks for", self._config.federation.rounds)
        yield gauge("fedlora_run_round", "the round that is at work, or the next one", known.round)
        yield counter("fedlora_rounds", "rounds that are over, in all processes of the run", known.totals.rounds)
        yield counter(
            "fedlora_rounds_repeated", "rounds that were begun again for want of a quorum", self._counts.num_repeated
        )
        yield gauge(
            "fedlora_last_round_timestamp_seconds",
            "when a round was last over, or this process began its first one; 0 before",
            self._last_ended,
        )
        yield self._timings.family("fedlora_phase_seconds", "seconds of each round's phases")

    def _updates(self, known: RunningSummary) -> Iterator[Metric]:
        yield counter(
            "fedlora_updates_accepted", "updates that count, in all rounds that are over", known.totals.accepted
        )
        refused = self._counts.updates_refused
        yield by_reason("fedlora_updates_refused", "updates that do not count", refused, UPDATE_REASONS)
        moved = CounterMetricFamily(
            "fedlora_adapter_bytes", "adapter bytes of the rounds that are over", labels=["direction"]
        )
        moved.add_metric(["down"], known.totals.bytes_down)
        moved.add_metric(["up"], known.totals.bytes_up)
        yield moved
        cohort = {
            "asked": len(known.cohort),
            "waited for": len(known.waiting),
            "accepted": len(known.accepted),
            "refused": len(known.refused),
        }
        yield labelled("fedlora_cohort_sites", "sites of the newest round", "state", cohort)
        yield gauge(
            "fedlora_quorum_ratio", "share of a round's updates that must count", self._config.federation.quorum
        )

    def _sites(self, known: RunningSummary) -> Iterator[Metric]:
        # Who was sent away for good is away with the code for it, and is waited for no more.
        counted = Counter(state for state, code in known.sites.values() if not (state == "away" and code))
        states = {state: counted[state] for state in SITE_STATES}
        yield labelled("fedlora_sites", "sites that are known, by state", "state", states)
        yield gauge("fedlora_sites_wanted", "sites that the run waits for at its start", self._config.federation.sites)

    def _disk(self, known: RunningSummary) -> Iterator[Metric]:
        files, sizes = {}, {}
        for kind in _FILES_ON_THEIR_WAY:
            files[kind], sizes[kind] = _held(self._folder / EXCHANGE_FOLDER / kind)
        yield labelled("fedlora_exchange_files", "adapters on their way", "kind", files)
        yield labelled("fedlora_exchange_bytes", "bytes of adapters on their way", "kind", sizes)
        with suppress(OSError):
            disk = shutil.disk_usage(self._folder)
            yield gauge("fedlora_disk_free_bytes", "free on the disk of the run's folder", disk.free)
            yield gauge("fedlora_disk_size_bytes", "size of the disk of the run's folder", disk.total)
        yield gauge("fedlora_disk_short", "1 while there is too little room for the next round", known.disk is not None)


def _left(known: RunningSummary) -> RunningSummary:
    """Return what is known of a run that nobody is at work on any more: it has no sites, and waits for nothing."""
    return replace(ended(known), sites={}, waiting=frozenset(), waiting_for="", disk=None)


def _scores(known: RunningSummary) -> Iterator[Metric]:
    """Yield what the newest rounds were worth; of what is not known yet there is no sample."""
    aggregation = None if known.last_trained is None else known.last_trained.aggregation
    errors = {} if aggregation is None else {"before": aggregation.error_before, "after": aggregation.error_after}
    yield labelled(
        "fedlora_aggregation_error", "norm of the average's error, before and after the correction", "stage", errors
    )
    losses = {
        "training": known.losses.latest,
        "validation": known.validation.course.latest,
        "held out": known.held_out_losses.latest,
    }
    yield labelled("fedlora_loss", "the last loss", "of", {of: latest[-1] for of, latest in losses.items() if latest})
    metric = GaugeMetricFamily("fedlora_metric", "the last value of the run's metric on the held-out set")
    if known.scores.latest:
        metric.add_metric([], known.scores.latest[-1])
    yield metric
    best = known.validation.best
    yield gauge(
        "fedlora_best_round", "the round with the lowest validation loss", math.nan if best is None else best[1]
    )


def _held(folder: Path) -> tuple[int, int]:
    """Return how many files lie in a folder and the folders in it, and how many bytes they have."""
    num_files = size_bytes = 0
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                below = _held(Path(entry.path))
                num_files, size_bytes = num_files + below[0], size_bytes + below[1]
            else:
                num_files, size_bytes = num_files + 1, size_bytes + entry.stat(follow_symlinks=False).st_size
    except OSError:
        pass  # It is written meanwhile, or not there yet.
    return num_files, size_bytes


def _changed(path: Path) -> float:
    """Return when a file was last written, in seconds since 1970; 0 where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
