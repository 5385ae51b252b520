"""A site's client as Prometheus metrics, made of what has happened when they are asked for; fedlora sends them nowhere.

Labels come from small closed sets: a phase, a state, a code, a GPU's number.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from fedlora.client.site.events import (
    PHASES,
    REQUESTS,
    Began,
    Connected,
    Disconnected,
    Ended,
    Event,
    Finished,
    Idle,
    Moved,
    Settled,
    StandingTold,
    Trained,
)
from fedlora.client.site.gpus import Gpu
from fedlora.common.metric_families import Timings, by_reason, certificate_ends, counter, gauge, labelled, of_states
from fedlora.common.reasons import UPDATE_REASONS, update_reason

SITE_STATES = ("away", "no run", "starting", "ready", "at work", "not ready", "finished")
# Of a site from which nothing is asked that it does not do.
_IN_ORDER = ("no run", "ready", "at work", "finished")
_PHASES = (*PHASES, "forward", "backward", "optimizer", "training", "validation")


class SiteMetrics(Collector):
    """Listens to what happens at a site, and shows it at each scrape.

    Attributes:
        is_finished: whether the run is over, at a server that has no other.
    """

    def __init__(self, *, certificate: Callable[[], bytes] | None, gpus: Callable[[], list[Gpu]]) -> None:
        """`certificate` reads the site's, where there is one; `gpus` says how the GPUs are doing."""
        self._certificate_of = {} if certificate is None else {"site": certificate}
        self._gpus = gpus
        self._timings = Timings(_PHASES)
        self._num_connections = self._num_rounds = self._round = 0
        self._is_connected = self._has_run = self.is_finished = False
        self._reason: str | None = None
        self._at_work: list[str] = []
        self._trained: Counter[str] = Counter()
        self._settled: Counter[str] = Counter()
        self._bytes_down = self._bytes_up = 0
        self._loss: float | None = None
        self._num_examples = 0

    def __call__(self, event: Event) -> None:
        """Take what has happened."""
        match event:
            case Connected():
                self._connect(has_run=True)
                self._num_rounds = event.num_rounds
                if event.is_new:
                    self._round = 0
            case Idle():
                self._connect(has_run=False)
            case Finished():
                self.is_finished = True
            case Disconnected():
                self._is_connected = False
            case StandingTold():
                self._reason = event.reason
            case Began():
                self._at_work = [*self._at_work, event.phase]
                self._round = max(self._round, event.round)
            case Ended():
                self._at_work = self._at_work[:-1]
                self._timings.add(event.phase, event.seconds)
            case Trained(receipt=receipt):
                self._trained.update(rounds=1, steps=receipt.num_steps, tokens=receipt.num_tokens)
                self._loss, self._num_examples = receipt.loss, receipt.num_examples
                for phase, seconds in receipt.seconds.items():
                    self._timings.add(phase, seconds)
            case Moved():
                self._bytes_down += event.bytes_down
                self._bytes_up += event.bytes_up
            case Settled():
                self._settled[update_reason(event.refusal) if event.refusal else ""] += 1

    def _connect(self, *, has_run: bool) -> None:
        """Note a connection; one that waited for a run goes on with it."""
        self._num_connections += not self._is_connected
        self._is_connected, self._has_run, self._reason = True, has_run, None

    @property
    def obstacle(self) -> str:
        """What keeps the site from taking part, in a word or two; nothing while it does, or no run is there for it."""
        state = self._state()
        return "" if state in _IN_ORDER else state

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield of_states("fedlora_site_state", "1 for what the site is", self._state(), SITE_STATES)
        yield counter("fedlora_site_connections", "connections to the server", self._num_connections)
        yield gauge("fedlora_site_round", "the round that the site was last asked for", self._round)
        yield gauge("fedlora_site_run_rounds", "rounds of the run; 0 before the first connection", self._num_rounds)
        yield counter("fedlora_site_rounds_trained", "trainings that the worker has finished", self._trained["rounds"])
        yield counter("fedlora_site_steps", "optimiser steps of these", self._trained["steps"])
        yield counter("fedlora_site_tokens", "answer tokens of these, of a language model", self._trained["tokens"])
        yield gauge("fedlora_site_examples", "training examples that the site holds", self._num_examples)
        yield self._timings.family("fedlora_site_phase_seconds", "seconds of what the site did")
        yield from self._told()
        yield from self._machine()

    def _told(self) -> Iterator[Metric]:
        """Yield what has come and gone, and what the server has said of it."""
        moved = CounterMetricFamily("fedlora_site_adapter_bytes", "adapter bytes", labels=["direction"])
        moved.add_metric(["down"], self._bytes_down)
        moved.add_metric(["up"], self._bytes_up)
        yield moved
        yield counter("fedlora_site_updates_accepted", "updates that the server has accepted", self._settled[""])
        yield by_reason(
            "fedlora_site_updates_refused", "updates that the server has refused", self._settled, UPDATE_REASONS
        )
        losses = {} if self._loss is None else {"training": self._loss}
        yield labelled("fedlora_site_loss", "the last loss, as far as the site lets it leave", "of", losses)

    def _machine(self) -> Iterator[Metric]:
        yield certificate_ends(self._certificate_of)
        gpus = {str(gpu.number): gpu for gpu in self._gpus()}
        used = {number: float(gpu.used_bytes) for number, gpu in gpus.items()}
        total = {number: float(gpu.size_bytes) for number, gpu in gpus.items()}
        busy = {number: gpu.busy_share for number, gpu in gpus.items()}
        yield labelled("fedlora_gpu_memory_used_bytes", "GPU memory in use, of all processes", "gpu", used)
        yield labelled("fedlora_gpu_memory_size_bytes", "GPU memory", "gpu", total)
        yield labelled("fedlora_gpu_utilization_ratio", "share of the time that a GPU was busy", "gpu", busy)

    def _state(self) -> str:
        if self.is_finished:
            return "finished"
        if not self._is_connected:
            return "away"
        if not self._has_run:
            return "no run"
        if self._reason:
            return "not ready"
        if any(phase in REQUESTS for phase in self._at_work):
            return "at work"
        return "starting" if self._reason is None else "ready"
