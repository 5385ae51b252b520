"""Prometheus metrics of values that are at hand: one call for each family, and histograms of how long phases took."""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from fedlora.common import certificates
from fedlora.common.errors import FedloraError
from fedlora.common.reasons import OTHER

# A tiny round takes hundredths of a second, a round of a large model over thin lines hours.
BOUNDS = (0.01, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 36_000.0)


@dataclass
class _Phase:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0


class Timings:
    """The seconds of each of some phases; safe to use from any thread."""

    def __init__(self, phases: Iterable[str]) -> None:
        """Others than these `phases` are not kept."""
        self._lock = threading.Lock()
        self._phases = {phase: _Phase() for phase in phases}

    def add(self, phase: str, seconds: float) -> None:
        """Count one time that a phase took."""
        with self._lock:
            if (known := self._phases.get(phase)) is not None:
                known.counts[bisect_left(BOUNDS, seconds)] += 1
                known.seconds += seconds

    def family(self, name: str, documentation: str) -> HistogramMetricFamily:
        """Return them as a histogram with the label `phase`."""
        found = HistogramMetricFamily(name, documentation, labels=["phase"])
        bounds = (*map(str, BOUNDS), "+Inf")
        with self._lock:
            for phase, known in self._phases.items():
                counts = zip(bounds, map(float, accumulate(known.counts)), strict=True)
                found.add_metric([phase], buckets=list(counts), sum_value=known.seconds)
        return found


def certificate_ends(certificate_of: Mapping[str, Callable[[], bytes]]) -> Metric:
    """Return when certificates end, by whose they are; one that cannot be read is left out."""
    found = {}
    for whose, read in certificate_of.items():
        with suppress(OSError, FedloraError):
            found[whose] = certificates.expiry(read()).timestamp()
    return labelled("fedlora_certificate_expiry_timestamp_seconds", "when a certificate ends", "whose", found)


def of_states(name: str, documentation: str, state: str, states: Iterable[str]) -> Metric:
    """Return 1 for a state and 0 for the others."""
    return labelled(name, documentation, "state", {each: float(each == state) for each in states})


def by_reason(name: str, documentation: str, counts: Counter[str], reasons: frozenset[str]) -> Metric:
    """Return counts of all reasons, those that are 0 too: an increase from nothing is none."""
    found = CounterMetricFamily(name, documentation, labels=["reason"])
    for reason in (*sorted(reasons), OTHER):
        found.add_metric([reason], counts[reason])
    return found


def labelled(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a gauge with a value for each of some words, whose blanks become underscores."""
    found = GaugeMetricFamily(name, documentation, labels=[label])
    for each, value in values.items():
        found.add_metric([each.replace(" ", "_")], value)
    return found


def gauge(name: str, documentation: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, documentation, value=float(value))


def counter(name: str, documentation: str, value: float) -> Metric:
    """Return a counter without labels; `_total` is put behind its name."""
    return CounterMetricFamily(name, documentation, value=float(value))
