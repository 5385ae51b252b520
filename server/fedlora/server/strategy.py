"""The strategy: plan a round, take the replies one by one, admit, aggregate, journal, and go on.

Flower's own `Strategy.start` waits for all replies and hands them over together, begins at round 1
whatever came before, and aggregates after its timeout whatever has come. Here `start` is ours: it
admits and journals each reply as it arrives, and goes on from the journal. What a round is stands in
`rounds`, what may enter it in `admission`; this file is the order of events.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import MessageType
from flwr.serverapp import Grid

from fedlora.adapters import Adapter, LoraLayer, load_adapter, pack, unpack
from fedlora.aggregation import AggregationReport, Method, Robust, RoundPlan
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, RunError
from fedlora.common.messages import (
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    TrainReceipt,
    TrainRequest,
)
from fedlora.server import rounds
from fedlora.server.admission import Refusal, admit, outliers, unfit
from fedlora.server.conversation import Addressed, ask, expect
from fedlora.server.evaluation import judge
from fedlora.server.events import (
    EvaluationStarted,
    Listener,
    RoundEnded,
    RoundStarted,
    RunStarted,
    UpdateArrived,
    ignore,
)
from fedlora.server.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.sites import Federation, Site, identify, meet
from fedlora.server.store import RunFolder

_INITIALISE = f"{MessageType.QUERY}.initialise"


@dataclass(frozen=True)
class Collected:
    """The updates of a round that count with their receipts, and why the others do not."""

    cohort: Sequence[str] = ()
    updates: Mapping[str, Adapter] = field(default_factory=dict)
    receipts: Mapping[str, TrainReceipt] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    bytes_down: int = 0
    storing_seconds: float = 0.0


class LoraStrategy:
    """Runs all rounds of one run, from where its folder stands."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: RunFolder,
        *,
        robust: Robust | None = None,
        num_sites: int,
        command: str,
        listener: Listener = ignore,
    ) -> None:
        """`num_sites` are waited for at the start, `command` goes into the manifest, `listener` hears what happens.

        `robust` is what is done to the updates of a round before `method` combines them.
        """
        self._config = config
        self._method = method
        self._robust = robust
        self._folder = folder
        self._num_sites = num_sites
        self._command = command
        self._listener = listener

    def start(self, grid: Grid) -> None:
        """Run the rounds that are left.

        Raises:
            RunError: too few sites came, they do not fit together, or a round stayed below its quorum.
            StoreError: the folder cannot be written, or base model or data are not those the run began with.
        """
        sites = meet(grid, num_sites=self._num_sites)
        checkpoint = self._folder.latest()
        # A start that does not fit is refused before anything is written.
        adapter = self._first_adapter(grid, sites) if checkpoint is None else checkpoint.adapter
        run_id = identify(sites, self._folder, config=self._config, command=self._command)
        federation = Federation(grid, sites, run_id)
        num_rounds = self._config.federation.rounds
        if checkpoint is None:
            self._listener(RunStarted(tuple(sites), num_rounds, 0, ()))
            self._finish(federation, 0, adapter, Collected(), None, {})
        else:
            self._folder.publish(adapter, checkpoint.round)
            self._listener(RunStarted(tuple(sites), num_rounds, checkpoint.round + 1, checkpoint.reports))
        for number in range(1 if checkpoint is None else checkpoint.round + 1, num_rounds + 1):
            adapter = self._round(federation, number, adapter)

    def _first_adapter(self, grid: Grid, sites: Mapping[str, Site]) -> Adapter:
        """Return the adapter to start from: fresh from the run's seed, or the one that the run names."""
        request = InitialiseRequest(self._config.run.seed)
        client, site = next(iter(sites.items()))
        asked = {client: Addressed(site.node, lambda _attempt: request)}
        (answer,) = ask(grid, asked, message_type=_INITIALISE, expected=InitialiseReceipt)
        fresh = unpack(expect(answer).adapter)
        given = self._config.federation.start_from
        return fresh if given is None else _given_start(given, like=fresh)

    def _round(self, federation: Federation, number: int, adapter: Adapter) -> Adapter:
        """Return the global adapter after one round."""
        settings = self._config.federation
        began = time.perf_counter()
        plan = self._method.plan(number)
        start = rounds.start_of_round(adapter, plan=plan, seed=self._config.run.seed, round=number)
        collected = self._collect(federation, number, start, plan)
        trained = time.perf_counter()
        if len(collected.updates) < rounds.quorum_size(len(collected.cohort), settings.quorum):
            reasons = "; ".join(f"{client}: {reason}" for client, reason in sorted(collected.refused.items()))
            raise RunError(
                f"round {number}: {len(collected.updates)} of {len(collected.cohort)} updates were accepted, "
                f"fewer than federation.quorum = {settings.quorum:g} asks for ({reasons})"
            )
        result = rounds.complete(
            collected.updates,
            start=start,
            num_examples={client: receipt.num_examples for client, receipt in collected.receipts.items()},
            weighting=settings.weighting,
            method=self._method,
            robust=self._robust,
        )
        seconds = {
            "training": trained - began - collected.storing_seconds,
            "aggregation": time.perf_counter() - trained,
            "storing": collected.storing_seconds,
        }
        self._finish(federation, number, result.adapter, collected, result.report, seconds)
        return result.adapter

    def _collect(self, federation: Federation, number: int, start: Adapter, plan: RoundPlan) -> Collected:
        """Return the updates of the cohort: those that an earlier process journaled, and the others as they arrive."""
        cohort = self._plan(federation, number)
        starts = self._starts(federation, cohort, start)
        packed = {id(given): pack(given) for given in starts.values()}
        requests = {
            client: self._train_requests(federation.run_id, number, plan, packed[id(given)])
            for client, given in starts.items()
        }
        updates: dict[str, Adapter] = {}
        receipts: dict[str, TrainReceipt] = {}
        refused: dict[str, str] = {}
        storing_seconds = 0.0

        def take(client: str, attempt: int, content: TrainReceipt | Failure) -> Refusal | None:
            if isinstance(content, Failure):
                return Refusal(content.code, content.text)
            admitted = admit(content, request=requests[client](attempt), client=client, reference=starts[client])
            if isinstance(admitted, Refusal):
                return admitted
            updates[client], receipts[client] = admitted, content
            return None

        for client, receipt in self._folder.accepted(number).items():
            take(client, receipt.attempt, receipt)
        self._listener(RoundStarted(number, cohort, tuple(updates)))
        asked = {
            client: Addressed(federation.sites[client].node, requests[client])
            for client in cohort
            if client not in updates
        }
        for answer in ask(federation.grid, asked, message_type=MessageType.TRAIN, expected=TrainReceipt):
            refusal = take(answer.key, answer.attempt, answer.content)
            if refusal is None:
                writing = time.perf_counter()
                self._folder.write_accepted(receipts[answer.key])
                storing_seconds += time.perf_counter() - writing
            else:
                refused[answer.key] = str(refusal)
            self._listener(UpdateArrived(number, answer.key, refused.get(answer.key, ""), _loss(answer.content)))
        limit = self._config.federation.norm_limit
        regauges = self._robust is not None and self._robust.regauge
        far = outliers(updates, references=starts, norm_limit=limit, by_factors=not regauges)
        for client, outlier in far.items():
            del updates[client]
            refused[client] = str(outlier)
            self._listener(UpdateArrived(number, client, refused[client], receipts.pop(client).loss))
        bytes_down = sum(len(packed[id(starts[client])]) for client in cohort)
        return Collected(cohort, updates, receipts, refused, bytes_down, storing_seconds)

    def _starts(self, federation: Federation, cohort: Sequence[str], start: Adapter) -> dict[str, Adapter]:
        """Return what each client starts from: the global adapter, with the client's own rank where that is smaller."""
        ranks = {client: federation.sites[client].description.lora_rank for client in cohort}
        by_rank = {rank: rounds.for_rank(start, rank, method=self._method) for rank in set(ranks.values())}
        return {client: by_rank[rank] for client, rank in ranks.items()}

    def _plan(self, federation: Federation, number: int) -> tuple[str, ...]:
        """Return the round's clients, journaled before any of them is asked."""
        planned = self._folder.plan(number)
        if planned is not None:
            return planned
        settings = self._config.federation
        cohort = rounds.cohort(
            list(federation.sites), fraction=settings.fraction, seed=self._config.run.seed, round=number
        )
        self._folder.write_plan(number, cohort)
        return cohort

    def _train_requests(
        self, run_id: str, number: int, plan: RoundPlan, packed: bytes
    ) -> Callable[[int], TrainRequest]:
        """Return what makes the round's request for an attempt."""
        config = self._config
        request = TrainRequest(
            run=run_id,
            round=number,
            attempt=0,
            seed=config.run.seed,
            num_rounds=config.federation.rounds,
            validation_examples=config.evaluation.client_examples,
            trains=plan.trains,
            adapter=packed,
        )
        return lambda attempt: replace(request, attempt=attempt)

    def _finish(
        self,
        federation: Federation,
        number: int,
        adapter: Adapter,
        collected: Collected,
        aggregation: AggregationReport | None,
        seconds: Mapping[str, float],
    ) -> None:
        """Judge the new global adapter, and record that the round is over."""
        began = time.perf_counter()
        num_examples = self._held_out_budget(number, num_held_out=federation.num_held_out)
        held_out: HeldOutReport | None = None
        predictions: dict[int, int] = {}
        if num_examples != 0:
            self._listener(EvaluationStarted(number))
            held_out, predictions = judge(federation, adapter, round=number, num_examples=num_examples)
        judged = time.perf_counter()
        adapter_sha256 = self._folder.write_checkpoint(number, adapter, predictions=predictions)
        storing = seconds.get("storing", 0.0) + time.perf_counter() - judged
        received = collected.receipts
        report = RoundReport(
            round=number,
            cohort=tuple(collected.cohort),
            clients={client: _client_report(received[client]) for client in sorted(received)},
            refused=dict(sorted(collected.refused.items())),
            aggregation=aggregation,
            held_out=held_out,
            bytes_down=collected.bytes_down,
            bytes_up=sum(len(receipt.adapter) for receipt in received.values()),
            seconds={**seconds, "evaluation": judged - began, "storing": storing},
            adapter_sha256=adapter_sha256,
        )
        self._folder.complete(report, adapter)
        self._listener(RoundEnded(report))

    def _held_out_budget(self, number: int, *, num_held_out: int) -> int | None:
        """Return how many held-out examples to judge after a round: None, for all, at both ends of the run."""
        if number in (0, self._config.federation.rounds) and num_held_out > 0:
            return None
        return min(self._config.evaluation.round_examples, num_held_out)


def _given_start(source: str, *, like: Adapter) -> Adapter:
    """Return the adapter in the folder `source`, fit for this run; heads it does not have start fresh."""
    given = load_adapter(source)
    layers = {path: LoraLayer(layer.A.float(), layer.B.float(), layer.scaling) for path, layer in given.layers.items()}
    dense = {path: tensor.float() for path, tensor in given.dense.items()} or like.dense
    start = Adapter(layers, dense, like.config)
    if refusal := unfit(start, like):
        raise AdapterError(f"federation.start_from: {source} does not fit this run: {refusal}")
    return start


def _client_report(receipt: TrainReceipt) -> ClientReport:
    return ClientReport(
        num_examples=receipt.num_examples,
        num_steps=receipt.num_steps,
        loss=receipt.loss,
        before=receipt.before,
        after=receipt.after,
        seconds=receipt.seconds,
    )


def _loss(content: TrainReceipt | Failure) -> float:
    return content.loss if isinstance(content, TrainReceipt) else math.nan
