"""What a site's worker does for the server's requests, and what of it the site allows to be told."""

import logging
from collections.abc import Callable
from dataclasses import replace

from flwr.app import Message

from fedlora.client.site.fetching import fetch
from fedlora.client.site.limits import allowed_evaluation, allowed_training
from fedlora.client.site.line import Line
from fedlora.client.site.outbox import Finished, Outbox
from fedlora.client.site.site_file import SiteConfig
from fedlora.client.worker.files_mod import DIFFERENCE, ask_for_file, make_of_difference
from fedlora.client.worker.seat import WorkerSeat
from fedlora.common.messages import (
    INTERRUPTED,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import PackedFile
from fedlora.common.phases import announce
from fedlora.common.wire import Receipt, Request
from fedlora.v1 import messages_pb2, session_pb2

logger = logging.getLogger(__name__)

Key = tuple[str, str, int, int, str]


class Tasks:
    """The requests of one run, done one after the other by the site's worker."""

    def __init__(self, site: SiteConfig, *, seat: WorkerSeat, outbox: Outbox, line: Callable[[], Line]) -> None:
        """`line` gives the present connection, over which adapters are fetched."""
        self._site = site
        self._seat = seat
        self._outbox = outbox
        self._line = line
        self._evaluated: dict[Key, EvaluateReceipt] = {}

    def is_done(self, key: Key, request: Request) -> bool:
        """Return whether the result is on the site's disk."""
        return isinstance(request, TrainRequest) and self._finished(key, request) is not None

    def result(self, key: Key, request: Request, message: session_pb2.Request) -> Receipt | Finished:
        """Return the result of a request: from disk where it was done before, else from the worker.

        Raises:
            ConnectionGone, grpc.RpcError: the request's adapter could not be fetched.
            FedloraError: it cannot be used, or the disk cannot.
        """
        match request:
            case TrainRequest():
                return self._trained(key, request, message)
            case EvaluateRequest():
                if (known := self._evaluated.get(key)) is not None:
                    return known
                receipt = self._allowed_receipt(self._ask(request, message.adapter, EvaluateReceipt))
                if isinstance(receipt, EvaluateReceipt):
                    self._evaluated = {key: receipt}
                return receipt
            case InitialiseRequest():
                return self._initialised(request)

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

        answer = self._ask(request, message.adapter, TrainReceipt, prepare)
        if not isinstance(answer, TrainReceipt):
            return self._allowed_receipt(answer)
        announce("write")
        receipt = allowed_training(answer, self._site.limits)
        if receipt.withheld:
            logger.info("withheld by limits.metrics: %s", ", ".join(receipt.withheld))
        logger.info("round %d: trained %d steps, loss %.4g", request.round, receipt.num_steps, answer.loss)
        return self._outbox.finish(receipt, run=request.run, round=request.round, started_from=key[-1])

    def _finished(self, key: Key, request: TrainRequest) -> Finished | None:
        return self._outbox.finished(request.run, request.round, started_from=key[-1])

    def _initialised(self, request: InitialiseRequest) -> Receipt | Finished:
        """Return the run's first adapter, as the update of round 0 of no run."""
        run, round = "start", 0
        folder = self._outbox.round_folder(run, round)
        asked = self._seat.message(request)
        ask_for_file(asked, folder / "update", precision="float32")
        answer = self._seat.ask(asked, InitialiseReceipt)
        if not isinstance(answer, InitialiseReceipt):
            return self._allowed_receipt(answer)
        return self._outbox.finish(answer, run=run, round=round, started_from="")

    def _ask(
        self,
        request: TrainRequest | EvaluateRequest,
        offered: messages_pb2.OfferedAdapter,
        expected: type,
        prepare: Callable[[Message], None] = lambda _message: None,
    ) -> object:
        """Return the worker's answer to a request with the adapter on offer."""
        for takes_difference in (True, False):
            whole, made_of = fetch(offered, self._outbox, self._line, takes_difference=takes_difference)
            asked = self._seat.message(replace(request, adapter=PackedFile(whole, 0)))
            if made_of is not None:
                make_of_difference(asked, *made_of)
            prepare(asked)
            answer = self._seat.ask(asked, expected)
            if made_of is not None:
                made_of[0].unlink(missing_ok=True)
            if not (isinstance(answer, Failure) and answer.code == DIFFERENCE):
                break
            logger.warning("the adapter is fetched whole: %s", answer.text)
        self._outbox.forget_adapters()
        return answer

    def _allowed_receipt(self, answer: object) -> Receipt:
        """Return an answer without what the site keeps to itself; a failure's text has been logged and stays."""
        if isinstance(answer, Failure):
            level = logging.INFO if answer.code == INTERRUPTED else logging.ERROR
            logger.log(level, "not finished (%s): %s", answer.code, answer.text)
            return Failure(answer.code)
        if isinstance(answer, EvaluateReceipt):
            return allowed_evaluation(answer, self._site.limits, site=self._site.site.name)
        raise TypeError(f"the worker answered {type(answer).__name__}")


def key_of(message: session_pb2.Request) -> Key:
    """Return what tells a piece of work from others, in whatever delivery it comes."""
    kind = message.WhichOneof("content") or ""
    adapter = message.adapter.whole.sha256.hex()
    if kind == "train":
        return kind, message.train.run, message.train.round, 0, adapter
    if kind == "evaluate":
        evaluate = message.evaluate
        kind = "validate" if evaluate.of_validation else kind
        return kind, evaluate.run, evaluate.round, evaluate.shard, adapter
    return kind, "", 0, 0, adapter
