"""What a site's worker does for the server's requests, and what of it the site allows to be told."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from flwr.app import Message

from fedlora.client.site.events import Listener, Moved, Trained, ignore, phase
from fedlora.client.site.fetching import Downloads, fetch
from fedlora.client.site.judging import Judging
from fedlora.client.site.limits import WITHHELD, allowed_evaluation, allowed_training
from fedlora.client.site.line import Line
from fedlora.client.site.outbox import Finished, Outbox
from fedlora.client.site.site_file import SiteConfig
from fedlora.client.site.spent import spent_in_run
from fedlora.client.worker.files_mod import DIFFERENCE, Making, ask_for_file, make_of_differences
from fedlora.client.worker.seat import WorkerSeat
from fedlora.common.bounds import SumStep
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.common.files import sha256_of
from fedlora.common.messages import (
    INTERRUPTED,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    SiteDescription,
    SumReceipt,
    SumRequest,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import PackedFile
from fedlora.common.phases import announce
from fedlora.common.schema import ADAPTER, FORMER, MOMENTS, serialised
from fedlora.common.wire import Receipt, Request, write_receipt
from fedlora.v1 import messages_pb2, session_pb2

logger = logging.getLogger(__name__)

Key = tuple[str, str, int, int, str]

_STEPS = get_args(SumStep)
_MOST_SUMS = 1000


class Tasks:
    """The requests of one run, done one after the other by the site's worker."""

    def __init__(
        self,
        run: RunConfig,
        site: SiteConfig,
        description: SiteDescription,
        *,
        seat: WorkerSeat,
        outbox: Outbox,
        line: Callable[[], Line],
        listener: Listener = ignore,
    ) -> None:
        """`description` is the worker's after its rehearsal; `line` gives the connection for fetching adapters."""
        self._run = run
        self._site = site
        self._step_examples = description.step_examples
        self._judging = Judging(run, site, description, outbox.judged_file)
        self._downloads = Downloads(run, description)
        self._seat = seat
        self._outbox = outbox
        self._line = line
        self._listener = listener
        self._evaluated: dict[Key, EvaluateReceipt] = {}

    def is_done(self, key: Key, request: Request) -> bool:
        """Return whether the result is on the site's disk; of a round's sums, the update that goes into them is."""
        if isinstance(request, SumRequest):
            return True
        return isinstance(request, TrainRequest) and self._finished(key, request) is not None

    def result(self, key: Key, request: Request, message: session_pb2.Request) -> Receipt | Finished:
        """Return the result of a request: from disk where it was done before, else from the worker.

        Raises:
            ConnectionGone, grpc.RpcError: the request's adapter could not be fetched.
            FedloraError: it cannot be used, or the disk cannot.
        """
        rounds = self._run.federation.rounds
        if not isinstance(request, InitialiseRequest) and request.round > rounds:
            raise RunError(f"the server asks for round {request.round} of a run of {rounds}")
        match request:
            case TrainRequest():
                return self._trained(key, request, message)
            case EvaluateRequest():
                return self._evaluation(key, request, message)
            case InitialiseRequest():
                return self._initialised(request)
            case SumRequest():
                return self._summed(request, message)

    def _evaluation(self, key: Key, request: EvaluateRequest, message: session_pb2.Request) -> Receipt:
        if (known := self._evaluated.get(key)) is not None:
            return known
        own, objection = self._judging.evaluation(request, key[-1])
        if objection:
            return self._allowed_receipt(Failure(WITHHELD, objection))
        receipt = self._allowed_receipt(self._ask(own, {ADAPTER: message.adapter}, EvaluateReceipt))
        if isinstance(receipt, EvaluateReceipt):
            self._evaluated = {key: receipt}
        return receipt

    def _trained(self, key: Key, request: TrainRequest, message: session_pb2.Request) -> Receipt | Finished:
        if (done := self._finished(key, request)) is not None:
            return done
        folder, residual = self._outbox.round_folder(request.run, request.round), self._outbox.residual(request.run)
        has_memory = message.precision == "int8"
        # Of a training that broke off: a loss that is not finite comes without an update.
        (folder / "update").unlink(missing_ok=True)

        def prepare(asked: Message) -> None:
            ask_for_file(
                asked,
                folder / "update",
                precision=message.precision,
                residual=residual if has_memory else None,
                new_residual=folder / "residual" if has_memory else None,
            )
            announce("train")
            logger.info("round %d: training", request.round)

        own, objection = self._judging.training(request, key[-1])
        # The former one first: the other may be a difference to it.
        needed = [FORMER] if message.HasField(FORMER) and self._run.train.client_momentum > 0 else []
        needed += [MOMENTS] if message.HasField(MOMENTS) and self._run.train.shared_moments else []
        needed.append(ADAPTER)
        answer = self._ask(own, {name: getattr(message, name) for name in needed}, TrainReceipt, prepare)
        if not isinstance(answer, TrainReceipt):
            return self._allowed_receipt(answer)
        announce("write")
        receipt = allowed_training(
            answer, self._site.limits, self._run, objection=objection, step_examples=self._step_examples
        )
        if receipt.withheld:
            why = objection or "by limits.metrics, limits.least_examples or privacy.unit"
            logger.info("round %d: withheld: %s (%s)", request.round, ", ".join(receipt.withheld), why)
        self._listener(Trained(receipt))
        logger.info("round %d: trained %d steps, loss %.4g", request.round, receipt.num_steps, answer.loss)
        self._tell_spent(request)
        return self._outbox.finish(receipt, run=request.run, round=request.round, started_from=_started_from(key))

    def _summed(self, request: SumRequest, message: session_pb2.Request) -> Receipt | Finished:
        """Return the answer to a step of a round's sums, for which the worker keeps its own state."""
        announce(f"{request.step} {request.index}")
        target = self._outbox.vector_file
        offers = {ADAPTER: message.adapter} if message.HasField(ADAPTER) else {}
        receipt = self._ask(request, offers, SumReceipt, lambda asked: ask_for_file(asked, target, precision="raw"))
        if not isinstance(receipt, SumReceipt):
            return self._allowed_receipt(receipt)
        answer = session_pb2.Answer()
        write_receipt(receipt, answer)
        if isinstance(receipt.adapter, PackedFile):
            blob = answer.adapter.encoded
            blob.sha256, blob.size_bytes = bytes.fromhex(sha256_of([target])), receipt.adapter.wire_bytes
        return Finished(answer, target)

    def _tell_spent(self, request: TrainRequest) -> None:
        """Say what a run whose examples are private has spent of their privacy."""
        if self._run.privacy.unit != "example":
            return
        spent = spent_in_run(self._outbox.state, self._site.site.name, request.run)
        if spent is not None:
            most = self._run.privacy.epsilon
            of_it = "" if most is None else f" of {most:g}"
            logger.info(
                "round %d: this run has spent an epsilon of %.3g%s at a delta of %g",
                request.round,
                spent.epsilon,
                of_it,
                spent.delta,
            )

    def _finished(self, key: Key, request: TrainRequest) -> Finished | None:
        return self._outbox.finished(request.run, request.round, started_from=_started_from(key))

    def _initialised(self, request: InitialiseRequest) -> Receipt | Finished:
        """Return the run's first adapter, as the update of round 0 of no run."""
        run, round = "start", 0
        folder = self._outbox.round_folder(run, round)
        asked = self._seat.message(request)
        ask_for_file(asked, folder / "update", precision="float32")
        answer = self._worked(asked, InitialiseReceipt)
        if not isinstance(answer, InitialiseReceipt):
            return self._allowed_receipt(answer)
        return self._outbox.finish(answer, run=run, round=round, started_from="")

    def _ask(
        self,
        request: TrainRequest | EvaluateRequest | SumRequest,
        offers: Mapping[str, messages_pb2.OfferedAdapter],
        expected: type,
        prepare: Callable[[Message], None] = lambda _message: None,
    ) -> object:
        """Return the worker's answer to a request with the adapters on offer, by the request's fields."""
        for takes_difference in (True, False):
            files, makings = self._fetched(offers, request.round, takes_difference=takes_difference)
            asked = self._seat.message(replace(request, **files))
            if makings:
                make_of_differences(asked, makings)
            prepare(asked)
            answer = self._worked(asked, expected)
            for making in makings:
                making.difference.unlink(missing_ok=True)
            if not (isinstance(answer, Failure) and answer.code == DIFFERENCE):
                break
            logger.warning("the adapter is fetched whole: %s", answer.text)
        self._outbox.forget_adapters()
        return answer

    def _worked(self, asked: Message, expected: type) -> object:
        """Return what the worker answers, however long it takes."""
        with phase(self._listener, "work") as fail:
            answer = self._seat.ask(asked, expected)
            fail(answer.code if isinstance(answer, Failure) else "")
        return answer

    def _fetched(
        self, offers: Mapping[str, messages_pb2.OfferedAdapter], round: int, *, takes_difference: bool
    ) -> tuple[dict[str, Any], list[Making]]:
        """Return the files of the adapters on offer, and which of them are yet to be made, in this order."""
        files: dict[str, Any] = {}
        makings: list[Making] = []
        admit = self._downloads.counter(round)

        def count(num_bytes: int) -> None:
            self._listener(Moved(bytes_down=num_bytes))
            admit(num_bytes)

        for name, offered in offers.items():
            self._downloads.require_possible(offered, are_moments=name == MOMENTS)
            made = {making.whole for making in makings}
            with phase(self._listener, "download"):
                whole, made_of = fetch(
                    offered, self._outbox, self._line, takes_difference=takes_difference, made=made, count=count
                )
            files[name] = PackedFile(whole, 0)
            if made_of is not None and whole not in made:
                makings.append(Making(whole, *made_of))
        return files, makings

    def _allowed_receipt(self, answer: object) -> Receipt:
        """Return an answer without what the site keeps to itself; a failure's text has been logged and stays."""
        if isinstance(answer, Failure):
            level = logging.INFO if answer.code == INTERRUPTED else logging.ERROR
            logger.log(level, "not finished (%s): %s", answer.code, answer.text)
            return Failure(answer.code)
        if isinstance(answer, EvaluateReceipt):
            allowed = allowed_evaluation(answer, self._site.limits, self._run, site=self._site.site.name)
            if isinstance(allowed, Failure):
                logger.info("round %d: %s: %s", answer.round, allowed.code, allowed.text)
            return allowed
        raise TypeError(f"the worker answered {type(answer).__name__}")


def _terms_number(request: messages_pb2.TrainRequest) -> int:
    """Return what tells a training for some sums from one for others; 0 where the update is sent itself."""
    if not request.HasField("sums"):
        return 0
    return int.from_bytes(hashlib.sha256(serialised(request.sums)).digest()[:7], "big") + 1


def _started_from(key: Key) -> str:
    """Return what a round's result belongs to: the adapter, and the sums that it goes into."""
    *_, number, adapter = key
    return f"{adapter}-{number:x}" if number else adapter


def key_of(message: session_pb2.Request) -> Key:
    """Return what tells a piece of work from others, in whatever delivery it comes."""
    kind = message.WhichOneof("content") or ""
    adapter = message.adapter.whole.sha256.hex()
    if kind == "train":
        return kind, message.train.run, message.train.round, _terms_number(message.train), adapter
    if kind == "evaluate":
        evaluate = message.evaluate
        kind = "validate" if evaluate.of_validation else kind
        return kind, evaluate.run, evaluate.round, evaluate.shard, adapter
    if kind == "sum":
        step = message.sum
        place = (step.repetition * _MOST_SUMS + step.index) * len(_STEPS) + _STEPS.index(step.step)
        return kind, step.run, step.round, place, adapter
    return kind, "", 0, 0, adapter
