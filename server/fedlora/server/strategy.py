"""The strategy: plan a round, take the replies one by one, admit, aggregate, journal, and go on.

Flower's own `Strategy.start` waits for all replies and hands them over together, begins at round 1
whatever came before, and aggregates after its timeout whatever has come. Here `start` is ours: it
admits and journals each reply as it arrives, and goes on from the journal. What a round is stands in
`rounds`, what may enter it in `admission`; this file is the order of events.
"""

import time
from collections.abc import Mapping, Sequence

from fedlora.adapters import Adapter, unpack
from fedlora.aggregation import AggregationReport, Robust
from fedlora.common.config import BASE_CHANGING_INITS, RunConfig
from fedlora.common.messages import Failure, InitialiseReceipt, InitialiseRequest, Score, TrainReceipt, merge_scores
from fedlora.common.packed_file import Packed, PackedFile
from fedlora.common.phases import announce
from fedlora.methods import Method, MethodState
from fedlora.server import rounds
from fedlora.server.collection import Collected, Collector
from fedlora.server.conversation import Addressed, Inquiry
from fedlora.server.evaluation import judge, validate
from fedlora.server.events import EvaluationStarted, Listener, RoundEnded, RunStarted, ignore
from fedlora.server.federation import Federation
from fedlora.server.given_start import Room, given_start
from fedlora.server.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.sites import Sites, Traffic
from fedlora.server.store import RunFolder

_PATIENCE = 30.0  # for the first adapter, which any site can give


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
        self._traffic = Traffic(0, 0)
        regauges = robust is not None and robust.regauge
        self._collector = Collector(config, method, folder, by_factors=not regauges, listener=listener)

    def start(self, sites: Sites) -> None:
        """Run the rounds that are left.

        Raises:
            RunError: too few sites came, they do not fit together, or a round stayed below its quorum.
            StoreError: the folder cannot be written, or base model or data are not those the run began with.
        """
        federation = Federation(sites, self._folder, self._listener)
        federation.gather(num_sites=self._num_sites)
        checkpoint = self._folder.latest()
        # A start that does not fit is refused before anything is written.
        adapter = self._first_adapter(federation) if checkpoint is None else checkpoint.adapter
        state: MethodState = {} if checkpoint is None else checkpoint.state
        federation.identify(config=self._config, command=self._command)
        num_rounds = self._config.federation.rounds
        reports = [] if checkpoint is None else list(checkpoint.reports)
        if checkpoint is None:
            self._listener(RunStarted(tuple(federation.sites), num_rounds, 0, ()))
            reports.append(self._finish(federation, 0, adapter, Collected(), None, {}))
        else:
            number = checkpoint.round
            self._folder.publish(adapter, number)
            self._listener(RunStarted(tuple(federation.sites), num_rounds, len(reports), tuple(reports)))
            self._remember_best({index: self._folder.adapter(index) for index in (number, number - 1)}, reports)
        while len(reports) <= num_rounds and not reports[-1].ended_early:
            number, before = len(reports), adapter
            adapter, state, report = self._round(federation, number, adapter, state, reports)
            reports.append(report)
            self._remember_best({number - 1: before, number: adapter}, reports)

    def _first_adapter(self, federation: Federation) -> Adapter:
        """Return the adapter to start from: fresh from the run's seed, or the one that the run names.

        Where sites come and go, the next one is asked if one cannot answer.
        """
        request = InitialiseRequest(self._config.run.seed)
        while True:
            reasons: list[str] = []
            for client in federation.available():
                asked = {client: Addressed(client, lambda _attempt: request)}
                inquiry = Inquiry(federation.link, asked, expected=InitialiseReceipt)
                answers = list(inquiry.answers(lambda waiting: not set(waiting) & set(federation.expected(_PATIENCE))))
                inquiry.withdraw()
                for answer in answers:
                    if not isinstance(answer.content, Failure):
                        return self._start_from(answer.content.adapter)
                    reasons.append(answer.content.words(client))
            what = "no site could give the first adapter"
            federation.wait_for(what, seconds=2.0, hopeless=reasons[0] if reasons else what)

    def _start_from(self, packed: Packed) -> Adapter:
        fresh = unpack(packed.path.read_bytes() if isinstance(packed, PackedFile) else packed)
        given = self._config.federation.start_from
        if given is None:
            return fresh
        starts_fresh = self._method.plan(1).starts_fresh
        changes_base = self._method.changes_base or self._config.lora.init in BASE_CHANGING_INITS
        return given_start(given, like=fresh, room=Room(starts_fresh, starts_fresh or changes_base))

    def _round(
        self,
        federation: Federation,
        number: int,
        adapter: Adapter,
        state: MethodState,
        reports: Sequence[RoundReport],
    ) -> tuple[Adapter, MethodState, RoundReport]:
        """Return the global adapter and the method's state after one round, and the round's report."""
        settings = self._config.federation
        began = time.perf_counter()
        plan = self._method.plan(number)
        start = rounds.start_of_round(adapter, plan=plan, seed=self._config.run.seed, round=number)
        needed = {
            client: part.seconds["answered"]
            for report in reports
            for client, part in report.clients.items()
            if "answered" in part.seconds and not part.age
        }
        collected = self._collector.collect(federation, number, start, plan, needed=needed)
        trained = time.perf_counter()
        announce("aggregate")
        result = rounds.complete(
            collected.updates,
            start=start,
            sizes={
                client: receipt.num_tokens if settings.weighting == "tokens" else receipt.num_examples
                for client, receipt in collected.receipts.items()
            },
            weighting=settings.weighting,
            method=self._method,
            state=state,
            robust=self._robust,
            ages={client: number - receipt.round for client, receipt in collected.receipts.items()},
        )
        seconds = {
            "training": trained - began - collected.storing_seconds,
            "aggregation": time.perf_counter() - trained,
            "storing": collected.storing_seconds,
        }
        ends_early = number < settings.rounds and rounds.has_stalled(
            rounds.validation_scores(reports) | _score_of_start(number, collected),
            patience=self._config.evaluation.early_stopping,
        )
        report = self._finish(
            federation,
            number,
            result.adapter,
            collected,
            result.report,
            seconds,
            state=result.state,
            ends_early=ends_early,
        )
        return result.adapter, result.state, report

    def _finish(
        self,
        federation: Federation,
        number: int,
        adapter: Adapter,
        collected: Collected,
        aggregation: AggregationReport | None,
        seconds: Mapping[str, float],
        *,
        state: MethodState | None = None,
        ends_early: bool = False,
    ) -> RoundReport:
        """Judge the new global adapter, and record that the round is over."""
        began = time.perf_counter()
        is_last = ends_early or number == self._config.federation.rounds
        is_at_an_end = is_last or number == 0
        num_examples = self._held_out_budget(is_at_an_end, num_held_out=federation.num_held_out)
        patience = self._config.federation.patience
        held_out: HeldOutReport | None = None
        predictions: dict[int, int] = {}
        answers: dict[int, str] = {}
        if num_examples != 0:
            self._listener(EvaluationStarted(number))
            held_out, predictions, answers = judge(
                federation,
                adapter,
                round=number,
                num_examples=num_examples,
                num_generated=self._config.evaluation.generate if is_at_an_end else 0,
                patience=patience,
            )
        validation = None
        if is_last and (budget := self._config.evaluation.client_examples) > 0:
            validation = validate(federation, adapter, round=number, num_examples=budget, patience=patience)
        judged = time.perf_counter()
        announce("write checkpoint")
        written = self._folder.write_checkpoint(number, adapter, state, predictions=predictions, answers=answers)
        storing = seconds.get("storing", 0.0) + time.perf_counter() - judged
        received = collected.receipts
        bytes_down, bytes_up = self._bytes_moved(federation.link, collected)
        report = RoundReport(
            round=number,
            cohort=tuple(collected.cohort),
            clients={
                client: _client_report(
                    received[client],
                    number,
                    answered=collected.answered.get(client),
                    is_unchanged=client in collected.unchanged,
                )
                for client in sorted(received)
            },
            refused=dict(sorted(collected.refused.items())),
            aggregation=aggregation,
            held_out=held_out,
            bytes_down=bytes_down,
            bytes_up=bytes_up,
            seconds={**seconds, "evaluation": judged - began, "storing": storing},
            adapter_sha256=written.adapter_sha256,
            state_sha256=written.state_sha256,
            validation=validation,
            ended_early=ends_early,
        )
        announce("publish")
        self._folder.complete(report, adapter)
        self._listener(RoundEnded(report))
        return report

    def _bytes_moved(self, sites: Sites, collected: Collected) -> tuple[int, int]:
        """Return the adapter bytes down and up since the last report: as counted, where somebody counts them."""
        moved = sites.traffic()
        if moved is None:
            return collected.bytes_down, collected.bytes_up
        before, self._traffic = self._traffic, moved
        return moved.bytes_down - before.bytes_down, moved.bytes_up - before.bytes_up

    def _remember_best(self, adapters: Mapping[int, Adapter | None], reports: Sequence[RoundReport]) -> None:
        """Keep the best round's adapter by the clients' validation loss, where it is one of `adapters`, by round."""
        scores = rounds.validation_scores(reports)
        best = rounds.best_round(scores)
        if best is not None and (adapter := adapters.get(best)) is not None:
            self._folder.write_best(best, adapter, scores[best])

    def _held_out_budget(self, is_at_an_end: bool, *, num_held_out: int) -> int | None:
        """Return how many held-out examples to judge after a round: None, for all, at both ends of the run."""
        if is_at_an_end and num_held_out > 0:
            return None
        return min(self._config.evaluation.round_examples, num_held_out)


def _client_report(receipt: TrainReceipt, number: int, *, answered: float | None, is_unchanged: bool) -> ClientReport:
    seconds = {**receipt.seconds, **({} if answered is None else {"answered": answered})}
    return ClientReport.of(receipt, seconds=seconds, age=number - receipt.round, is_unchanged=is_unchanged)


def _score_of_start(number: int, collected: Collected) -> dict[int, Score]:
    """Return by its round the validation score of the adapter that round `number` started from, if anybody judged."""
    judged = [
        receipt.before
        for receipt in collected.receipts.values()
        if receipt.before is not None and receipt.round == number
    ]
    return {number - 1: merge_scores(judged)} if judged else {}
