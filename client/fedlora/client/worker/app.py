"""The ClientApp: Flower's messages to the workbench, and its answers back."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedlora.client.worker.workbench import Workbench
from fedlora.common.errors import FedloraError, RunError
from fedlora.common.messages import (
    INTERNAL,
    OUT_OF_MEMORY,
    DescribeRequest,
    EvaluateRequest,
    Failure,
    InitialiseRequest,
    SumRequest,
    TrainRequest,
)
from fedlora.common.records import from_record, to_record
from fedlora.training.memory import is_out_of_memory

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from fedlora.client.worker.sums.own_part import OwnSums
    from fedlora.client.worker.trainer_bench import TrainerBench

Bench: TypeAlias = "Workbench | TrainerBench"

# The resident workbench. Flower's simulation engine unpickles the ClientApp anew for every message, so that only a
# module outlives one.
_resident: dict[str, Bench] = {}


def make_client_app(
    load: Callable[[], Bench],
    *,
    key: str,
    explain_failures: bool,
    sums: "OwnSums | None" = None,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return the ClientApp over the workbench that `load` gives, at the first message whose `key` is another.

    `sums` is the clients' part in secure sums; without it updates are sent themselves.
    A node serves the client at the place of its `partition-id` among the sorted names, the first without one.
    What goes wrong is answered as a `Failure`: a typed code, and its text only with `explain_failures`. The answers are
    for a process of the same owner: they hold what is local too.
    """
    app = ClientApp(mods=list(mods))

    def answering(answer: Callable[[Bench, str, Message], object]) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            try:
                workbench = _resident_workbench(load, key)
                client = workbench.client_names[int(context.node_config.get("partition-id", 0))]
                receipt = answer(workbench, client, message)
            except Exception as error:
                code, text = failure_code(error), str(error)
                if code == INTERNAL:
                    logger.exception("a request failed; this is a bug in fedlora, in the model or in the task")
                    text = f"{type(error).__name__}: {error}"
                receipt = Failure(code, text[:2000] if explain_failures else "")
            return Message(to_record(receipt, with_local=True), reply_to=message)

        return handle

    def train(workbench: Bench, client: str, message: Message) -> object:
        request = from_record(message.content, TrainRequest)
        if sums is None:
            return workbench.train(client, request)
        return sums.trained(client, request, partial(workbench.train, client))

    def step(_workbench: Bench, client: str, message: Message) -> object:
        if sums is None:
            raise RunError("no secure sums here")
        return sums.answer(client, from_record(message.content, SumRequest))

    app.query("describe")(answering(_describe))
    app.query("initialise")(answering(_initialise))
    app.query("sum")(answering(step))
    app.train()(answering(train))
    app.evaluate()(answering(_evaluate))
    return app


def _describe(workbench: Bench, client: str, message: Message) -> object:
    if from_record(message.content, DescribeRequest).rehearse:
        workbench.rehearse(client)
    return workbench.describe(client)


def _initialise(workbench: Bench, _client: str, message: Message) -> object:
    return workbench.initialise(from_record(message.content, InitialiseRequest))


def _evaluate(workbench: Bench, client: str, message: Message) -> object:
    return workbench.evaluate(client, from_record(message.content, EvaluateRequest))


def _resident_workbench(load: Callable[[], Bench], key: str) -> Bench:
    if key not in _resident:
        _resident.clear()
        _resident[key] = load()
    return _resident[key]


def failure_code(error: Exception) -> str:
    """Return the code of an error that kept a client from its answer: all that another owner is told of it."""
    if isinstance(error, FedloraError):
        return error.code
    return OUT_OF_MEMORY if is_out_of_memory(error) else INTERNAL
