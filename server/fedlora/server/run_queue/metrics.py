"""A store as Prometheus metrics: how many of its runs are in which state, and those of the run that began last."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.metric_families import certificate_ends, labelled
from fedlora.server.record.events import Event
from fedlora.server.record.round_report import RoundReport
from fedlora.server.run_metrics import Counts, RefusedCalls, RunMetrics
from fedlora.server.run_queue.queue import State
from fedlora.server.run_queue.store import RunStore


class StoreMetrics(Collector):
    """Shows a store at each scrape. What is counted event by event is of the process, over all of its runs."""

    def __init__(self, store: RunStore, *, certificate_of: Mapping[str, Callable[[], bytes]]) -> None:
        """`certificate_of` reads certificates, by whose they are; one that is not there yet is left out."""
        self._store = store
        self._certificate_of = certificate_of
        self._of_run: RunMetrics | None = None
        # A counter that began anew with each run would step by what a run that goes on has behind it.
        self._counts = Counts()
        self._calls = RefusedCalls()

    def begin(self, config: RunConfig, folder: Path, *, reports: Sequence[RoundReport]) -> RunMetrics:
        """Return the metrics of a run that begins, which are shown from here on."""
        self._of_run = RunMetrics(config, folder, reports=reports, certificate_of={}, counts=self._counts)
        return self._of_run

    def heard(self, event: Event) -> None:
        """Take what happens at the store's port, with or without a run."""
        self._calls.heard(event)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        try:
            counts = Counter(run.state for run in self._store.queue().runs)
        except StoreError:
            counts = Counter()
        numbers = {state: float(counts[state]) for state in get_args(State)}
        yield labelled("fedlora_runs", "runs of the store by state", "state", numbers)
        if (of_run := self._of_run) is not None:
            yield from of_run.of_the_run()
        yield self._calls.family()
        yield certificate_ends(self._certificate_of)
