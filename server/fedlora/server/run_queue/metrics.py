"""A store as Prometheus metrics: how many of its runs are in which state, and those of the run that began last."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.metric_families import certificate_ends, labelled
from fedlora.server.record.running_summary import RunningSummary
from fedlora.server.run_metrics import RunMetrics
from fedlora.server.run_queue.queue import State
from fedlora.server.run_queue.store import RunStore


class StoreMetrics(Collector):
    """Shows a store at each scrape. From run to run a run's counters begin again, as those of a new process do."""

    def __init__(self, store: RunStore, *, certificate_of: Mapping[str, Callable[[], bytes]]) -> None:
        """`certificate_of` reads certificates, by whose they are; one that is not there yet is left out."""
        self._store = store
        self._certificate_of = certificate_of
        self._of_run: RunMetrics | None = None

    def begin(self, config: RunConfig, folder: Path, *, known: RunningSummary) -> RunMetrics:
        """Return the metrics of a run that begins, which are shown from here on."""
        self._of_run = RunMetrics(config, folder, known=known, certificate_of=self._certificate_of)
        return self._of_run

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        try:
            counts = Counter(run.state for run in self._store.queue().runs)
        except StoreError:
            counts = Counter()
        numbers = {state: float(counts[state]) for state in get_args(State)}
        yield labelled("fedlora_runs", "runs of the store by state", "state", numbers)
        if (of_run := self._of_run) is not None:
            yield from of_run.collect()
        else:
            yield certificate_ends(self._certificate_of)
