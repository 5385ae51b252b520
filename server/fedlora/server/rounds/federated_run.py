"""A run, from where its folder stands: round after round is collected, aggregated, judged and journaled.

Flower's own `Strategy.start` waits for all replies and hands them over together, begins at round 1 whatever came
before, and aggregates after its timeout whatever has come. Here each reply is admitted and journaled as it arrives,
and a run goes on from the journal. This file is the order of events; each of them has a file beside it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedlora.adapters import Adapter, pack
from fedlora.aggregation import AggregationReport, Robust, ServerOptimizer
from fedlora.aggregation.server_optimizer import stepped
from fedlora.aggregation.shared_moments import moments_in
from fedlora.common.config import RunConfig
from fedlora.common.messages import Score, TrainReceipt, TrainRequest
from fedlora.common.phases import announce
from fedlora.methods import Method, MethodState
from fedlora.server.disk.account import Account
from fedlora.server.disk.store import Checkpoint, RunFolder, StoredAdapter
from fedlora.server.record.best_round import best_round, has_stalled, score_of_start, scores_in
from fedlora.server.record.events import EvaluationStarted, Listener, Noted, RoundEnded, RunStarted, ignore
from fedlora.server.record.privacy_record import ClientPrivacy
from fedlora.server.record.round_report import ClientReport, RoundReport, Share
from fedlora.server.rounds.collect import Collected, Collector
from fedlora.server.rounds.completion import complete, weigh
from fedlora.server.rounds.evaluation import Judged, judge, validate
from fedlora.server.rounds.federation import Federation
from fedlora.server.rounds.first_adapter import first_adapter
from fedlora.server.rounds.private_rounds import PrivateRounds
from fedlora.server.rounds.starts import Former, SharedMoments, Starts, start_of_round
from fedlora.server.rounds.summed_round import SumCollector
from fedlora.server.sites import Sites, Traffic


@dataclass(frozen=True, eq=False)
class _NewAdapter:
    """What a round's updates became: the global adapter, what is kept, the error of the averages, the weights.

    `shares` are how much of the round's weight each client has, `sums` what is to be known of secure sums.
    """

    adapter: Adapter
    state: MethodState = field(default_factory=dict)
    aggregation: AggregationReport | None = None
    shares: Mapping[str, Share] = field(default_factory=dict)
    sums: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Ended:
    """A round that is on disk: what the next one goes on from.

    `former` is what the round itself started from, where the next one's clients need it.
    """

    stored: StoredAdapter
    state: MethodState
    report: RoundReport
    former: StoredAdapter | None = None


class FederatedRun:
    """All rounds of one run, from where its folder stands."""

    def __init__(
        self,
        config: RunConfig,
        method: Method,
        folder: RunFolder,
        *,
        robust: Robust | None = None,
        server_optimizer: ServerOptimizer | None = None,
        privacy: ClientPrivacy | None = None,
        num_sites: int,
        command: str,
        listener: Listener = ignore,
        account: Account | None = None,
    ) -> None:
        """`num_sites` are waited for at the start, `command` goes into the manifest, `listener` hears what happens.

        `robust` is what is done to the updates of a round before `method` combines them, `server_optimizer` how the
        server steps to what comes of that, `privacy` how sums over the clients are noised; `account` keeps the time.
        """
        if (config.privacy.unit == "client") != (privacy is not None):
            raise ValueError(f"privacy.unit is {config.privacy.unit}, and privacy {privacy}; expected both or neither")
        self._config = config
        self._method = method
        self._robust = robust
        self._server_optimizer = server_optimizer
        self._private = PrivateRounds(privacy, method, folder) if privacy else None
        self._folder = folder
        self._num_sites = num_sites
        self._command = command
        self._listener = listener
        self._account = account or Account(folder.path)
        self._traffic = Traffic(0, 0)
        self._needed: dict[str, float] = {}
        self._scores: dict[int, Score] = {}
        # The steps of the clients go on with what they have of the last change of the global adapter.
        self._needs_former = config.train.client_momentum > 0
        folder.keeps_former = self._needs_former
        regauges = robust is not None and robust.regauge
        self._collector = Collector(config, folder, by_factors=not regauges, listener=listener)
        secure = config.privacy.secure_sums
        self._summing = SumCollector(config, method, folder, listener=listener) if secure else None

    def start(self, sites: Sites) -> None:
        """Run the rounds that are left.

        Raises:
            RunError: too few sites came, they do not fit together, or a round stayed below its quorum.
            StoreError: the folder cannot be written, or base model or data are not those the run began with.
        """
        federation = Federation(sites, self._folder, self._listener, self._config)
        if not sites.are_fixed:
            self._folder.wait_for_space, self._folder.go_on = federation.wait_for_space, federation.go_on
        federation.gather(num_sites=self._num_sites)
        checkpoint = self._folder.latest()
        ended = self._begin(federation) if checkpoint is None else self._go_on(federation, checkpoint)
        while not self._is_over(ended.report):
            before, ended = ended, self._round(federation, ended)
            self._remember_best(before, ended)

    def _begin(self, federation: Federation) -> _Ended:
        """Return round 0 of a new run: the first adapter, as it is judged before anything was learned."""
        # One that does not fit is refused before anything is written.
        adapter = first_adapter(federation, self._config, self._method)
        federation.identify(config=self._config, command=self._command)
        if self._private is not None:
            self._private.begin()
        self._account.begin(0, lambda: self._bytes_moved(federation.link.traffic(), Collected()))
        self._listener(RunStarted(tuple(federation.sites), self._config.federation.rounds, 0, ()))
        return self._finish(federation, 0, _NewAdapter(adapter), Collected(), {})

    def _go_on(self, federation: Federation, checkpoint: Checkpoint) -> _Ended:
        """Return the newest round of a run that goes on; what a crash may have cut off after it is done again."""
        federation.identify(config=self._config, command=self._command)
        self._folder.publish(checkpoint.stored, checkpoint.round)
        self._folder.forget_accepted_after(checkpoint.round + 1)
        reports = checkpoint.reports
        if self._private is not None:
            self._private.go_on(reports)
        for report in reports:
            self._learn(report)
        num_rounds, is_over = self._config.federation.rounds, self._is_over(reports[-1])
        if is_over and reports[-1].round < num_rounds:
            if not reports[-1].ended_early:  # A round that was cut off has spent the rest of the budget.
                reports = (*reports[:-1], replace(reports[-1], ended_early=True))
                self._folder.complete(reports[-1], checkpoint.stored)
            self._listener(Noted((self._why_over(reports[-1]),)))
        self._listener(RunStarted(tuple(federation.sites), num_rounds, len(reports), reports, is_over))
        former = None if is_over or not self._needs_former else self._folder.before(checkpoint)
        ended = _Ended(checkpoint.stored, checkpoint.state, reports[-1], former)
        self._remember_best(ended)
        return ended

    def _is_over(self, last: RoundReport) -> bool:
        """Return whether no round follows the last one.

        A run that has ended early goes on where its run file is no longer content with what it went by then.
        """
        if self._private is not None and self._private.is_over_after(last.round):
            return True
        if not last.ended_early:
            return last.round >= self._config.federation.rounds
        if last.is_out_of_budget:
            return True
        known_then = {number: score for number, score in self._scores.items() if number < last.round}
        return has_stalled(known_then, patience=self._config.evaluation.early_stopping)

    def _round(self, federation: Federation, before: _Ended) -> _Ended:
        settings, seed = self._config.federation, self._config.run.seed
        number, given = before.report.round + 1, before.stored
        self._account.begin(number, lambda: self._bytes_moved(federation.link.traffic(), Collected()))
        plan = self._method.plan(number)
        start = start_of_round(given.adapter, plan=plan, seed=seed, round=number)
        request = TrainRequest(
            run=federation.run_id,
            round=number,
            attempt=0,
            seed=seed,
            num_rounds=settings.rounds,
            validation_examples=self._config.evaluation.client_examples,
            trains=plan.trains,
        )
        packed = given.packed if start is given.adapter else pack(start)
        form = self._config.train.shared_moments
        moments = SharedMoments(moments_in(before.state), form) if form and number > 1 else None
        starts = Starts(
            start, packed, request, method=self._method, former=_former_of(before, federation.link), moments=moments
        )
        made = self._of_updates if self._summing is None else self._of_sums
        new, collected, seconds = made(federation, number, starts, before)
        ended = self._finish(federation, number, new, collected, seconds, is_end=not collected.receipts)
        return replace(ended, former=given) if self._needs_former else ended

    def _of_updates(
        self, federation: Federation, number: int, starts: Starts, before: _Ended
    ) -> tuple[_NewAdapter, Collected, dict[str, float]]:
        """Return what the clients' updates become, what they said of themselves, and the seconds of each phase."""
        began = time.perf_counter()
        collected = self._collector.collect(federation, number, starts, needed=self._needed)
        trained = time.perf_counter()
        if not collected.receipts:
            # Nobody has any privacy budget left: the last model stays what it is, and is judged as the last one.
            return _NewAdapter(before.stored.adapter, before.state), collected, {"training": trained - began}
        announce("aggregate")
        start = starts.whole.adapter
        if self._private is not None:
            adapter = self._private.combined(number, collected, start=start, plan=self._method.plan(number))
            new = _NewAdapter(adapter, shares=weigh(dict.fromkeys(collected.receipts, 1), weighting="uniform").shares)
        else:
            new = self._combined(number, collected, start=start, state=before.state)
        seconds = {
            "training": trained - began - collected.storing_seconds,
            "aggregation": time.perf_counter() - trained,
            "storing": collected.storing_seconds,
        }
        return new, collected, seconds

    def _combined(self, number: int, collected: Collected, *, start: Adapter, state: MethodState) -> _NewAdapter:
        """Return what the method makes of the round's updates."""
        settings = self._config.federation
        weighs_tokens = settings.weighting == "tokens"
        weights = weigh(
            {
                client: receipt.num_tokens if weighs_tokens else receipt.num_examples
                for client, receipt in collected.receipts.items()
            },
            weighting=settings.weighting,
            max_share=settings.max_share,
            ages={client: number - receipt.round for client, receipt in collected.receipts.items()},
        )
        result = complete(
            collected.updates,
            start=start,
            weights=weights.by_client,
            method=self._method,
            state=state,
            robust=self._robust,
            server_optimizer=self._server_optimizer,
            moments=collected.moments,
            form=self._config.train.shared_moments,
        )
        return _NewAdapter(result.adapter, result.state, result.report, weights.shares)

    def _of_sums(
        self, federation: Federation, number: int, starts: Starts, before: _Ended
    ) -> tuple[_NewAdapter, Collected, dict[str, float]]:
        """Return the same of a round whose server sees sums over the clients alone."""
        assert self._summing is not None
        began = time.perf_counter()
        collected, summed = self._summing.summed(federation, number, starts, needed=self._needed, state=before.state)
        if summed is None:
            return (
                _NewAdapter(before.stored.adapter, before.state),
                collected,
                {"training": time.perf_counter() - began},
            )
        adapter, state = summed.adapter, {**before.state, **summed.state}
        if self._server_optimizer is not None:
            adapter, state, _ = stepped(adapter, starts.whole.adapter, state, self._server_optimizer)
        seconds = {"training": summed.trained - began, "aggregation": time.perf_counter() - summed.trained}
        return _NewAdapter(adapter, state, None, summed.shares, summed.notes), collected, seconds

    def _finish(
        self,
        federation: Federation,
        number: int,
        new: _NewAdapter,
        collected: Collected,
        seconds: Mapping[str, float],
        *,
        is_end: bool = False,
    ) -> _Ended:
        """Store and judge the new global adapter, and record that the round is over, and with `is_end` the run."""
        clients = _client_reports(number, collected, new.shares)
        ends_early = is_end or self._ends_early(number, clients)
        is_last = ends_early or number == self._config.federation.rounds
        began = time.perf_counter()
        announce("write checkpoint")
        stored = self._folder.write_adapter(number, new.adapter)
        written = time.perf_counter()
        judged = self._judge(federation, stored, number, is_at_an_end=is_last or number == 0)
        validation = None
        if is_last and (budget := self._config.evaluation.client_examples) > 0:
            validation = validate(
                federation,
                stored.packed,
                round=number,
                num_examples=budget,
                patience=self._config.federation.patience,
                is_own_task=self._config.task.kind == "own",
            )
        scored = time.perf_counter()
        state_sha256 = self._folder.write_beside(
            number, new.state, predictions=judged.predictions, answers=judged.answers
        )
        storing = seconds.get("storing", 0.0) + (written - began) + (time.perf_counter() - scored)
        moved = federation.link.traffic()
        bytes_down, bytes_up = self._bytes_moved(moved, collected)
        self._traffic = moved or self._traffic
        lost = self._account.lost(number)
        interrupted = {"interrupted": lost.seconds} if lost.seconds > 0 else {}
        report = RoundReport(
            round=number,
            cohort=tuple(collected.cohort),
            clients=clients,
            refused=dict(sorted(collected.refused.items())),
            aggregation=new.aggregation,
            held_out=judged.report,
            bytes_down=bytes_down + lost.bytes_down,
            bytes_up=bytes_up + lost.bytes_up,
            seconds={**seconds, "evaluation": scored - written, "storing": storing, **interrupted},
            adapter_sha256=stored.sha256,
            state_sha256=state_sha256,
            validation=validation,
            ended_early=ends_early,
            sums=new.sums,
            epsilon=self._private.epsilon if self._private else None,
            num_clipped=self._private.num_clipped(number) if self._private else (),
        )
        announce("publish")
        self._folder.complete(report, stored)
        self._listener(RoundEnded(report))
        if ends_early and self._private is not None:
            self._listener(Noted((self._why_over(report),)))
        self._learn(report)
        return _Ended(stored, new.state, report)

    def _judge(self, federation: Federation, stored: StoredAdapter, number: int, *, is_at_an_end: bool) -> Judged:
        """Return the adapter's score on the held-out set: at both ends of the run on all of it, else on a sample."""
        size, budget = federation.num_held_out, self._config.evaluation.round_examples
        num_examples = None if is_at_an_end or budget >= size else budget
        if size == 0 or num_examples == 0:
            return Judged()
        self._listener(EvaluationStarted(number))
        return judge(
            federation,
            stored.packed,
            round=number,
            num_examples=num_examples,
            num_generated=self._config.evaluation.generate if is_at_an_end else 0,
            patience=self._config.federation.patience,
            is_own_task=self._config.task.kind == "own",
        )

    def _ends_early(self, number: int, clients: Mapping[str, ClientReport]) -> bool:
        """Return whether no round follows: the budget allows none, or the clients' validation has stopped falling.

        What they say of this round's start is a part of it.
        """
        if number == self._config.federation.rounds:
            return False
        if self._private is not None and self._private.is_over_after(number):
            return True
        scores = self._scores | score_of_start(number, clients)
        return has_stalled(scores, patience=self._config.evaluation.early_stopping)

    def _why_over(self, last: RoundReport) -> str:
        num_rounds, patience = self._config.federation.rounds, self._config.evaluation.early_stopping
        if last.is_out_of_budget:
            return f"the run ended early, in round {last.round} of {num_rounds}: {last.why_ended}"
        if self._private is not None:
            return self._private.why_over(last.round, num_rounds)
        return (
            f"the run ended early, after round {last.round} of {num_rounds}, by evaluation.early_stopping = "
            f"{patience}; it goes on with --set evaluation.early_stopping=0, or a higher number"
        )

    def _learn(self, report: RoundReport) -> None:
        """Take from a report what later rounds go by."""
        self._scores |= scores_in(report)
        for client, part in report.clients.items():
            if "answered" in part.seconds and not part.age:
                self._needed[client] = part.seconds["answered"]

    def _remember_best(self, *at_hand: _Ended) -> None:
        """Keep the best round's adapter by the clients' validation loss, while the journal has it."""
        best = best_round(self._scores)
        if best is not None:
            known = {ended.report.round: ended.stored for ended in at_hand}
            self._folder.write_best(best, self._scores[best], known)

    def _bytes_moved(self, moved: Traffic | None, collected: Collected) -> tuple[int, int]:
        """Return the adapter bytes down and up since the last report: as counted, where somebody counts them."""
        if moved is None:
            return collected.bytes_down, collected.bytes_up
        return moved.bytes_down - self._traffic.bytes_down, moved.bytes_up - self._traffic.bytes_up


def _former_of(before: _Ended, sites: Sites) -> Former | None:
    """Return what the last round started from, where this one's clients need it."""
    if before.former is None:
        return None
    sent_to = before.report.cohort if sites.keep_adapters else ()
    return Former(before.former.adapter, before.former.packed, sent_to)


def _client_reports(number: int, collected: Collected, shares: Mapping[str, Share]) -> dict[str, ClientReport]:
    return {
        client: _client_report(receipt, number, collected, shares.get(client))
        for client, receipt in sorted(collected.receipts.items())
    }


def _client_report(receipt: TrainReceipt, number: int, collected: Collected, share: Share | None) -> ClientReport:
    client = receipt.client
    answered = {"answered": collected.answered[client]} if client in collected.answered else {}
    return ClientReport.of(
        receipt,
        seconds={**receipt.seconds, **answered},
        age=number - receipt.round,
        is_unchanged=collected.flags.get(client) == "unchanged",
        is_zero=collected.flags.get(client) == "zero",
        share=share,
    )
