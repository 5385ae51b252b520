"""Clients that do nothing: each answers a request with the adapter it got, one number of it changed.

Without that change the next global adapter would be the last one, which the sites hold already, and a round would
move nothing. The change is the adapter's one copy; nothing here loads a model.
"""

import struct
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedlora.common.messages import (
    OK,
    DescribeRequest,
    EvaluateReceipt,
    EvaluateRequest,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    SumRequest,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import PackedFile
from fedlora.common.records import from_record, kind_of, to_record

if TYPE_CHECKING:
    from fedlora.client.worker.sums.own_part import OwnSums

NUM_EXAMPLES, LOSS = 10, 0.5
_STEP = 1 / 64  # Exact in bfloat16, so that also the sites' copies change by it.
LABELS = ("one", "other")


def make_idle_app(name: str, adapter: Path, num_held_out: int, sums: "OwnSums | None" = None) -> ClientApp:
    """Return the app for a site's worker, which gets adapters as files; the first adapter is in the file `adapter`.

    `sums` is the site's part in secure sums, where the run has them.
    """
    import torch

    from fedlora.client.worker.files_mod import adapters_as_files

    torch.set_num_threads(1)  # As in a real worker, for files of small tensors are made here.
    app = ClientApp(mods=[adapters_as_files])

    def answer(message: Message, _context: Context) -> Message:
        if sums is not None and kind_of(message.content) == TrainRequest.__name__:
            request = from_record(message.content, TrainRequest)
            receipt: object = sums.trained(name, request, lambda asked: _trained(asked, name))
        elif sums is not None and kind_of(message.content) == SumRequest.__name__:
            receipt = sums.answer(name, from_record(message.content, SumRequest))
        else:
            return answered(message, name=name, adapter=adapter, num_held_out=num_held_out)
        return Message(to_record(receipt, with_local=True), reply_to=message)

    for register in (
        app.query("describe"),
        app.query("initialise"),
        app.query("sum"),
        app.train(),
        app.evaluate(),
    ):
        register(answer)
    return app


def answered(message: Message, *, name: str, adapter: Path, num_held_out: int) -> Message:
    """Return what the client `name` answers at once."""
    answers: dict[str, Callable[[], object]] = {
        DescribeRequest.__name__: partial(described, name, num_held_out, adapter.stat().st_size),
        InitialiseRequest.__name__: lambda: InitialiseReceipt(adapter.read_bytes()),
        TrainRequest.__name__: lambda: _trained(from_record(message.content, TrainRequest), name),
        EvaluateRequest.__name__: lambda: _evaluated(from_record(message.content, EvaluateRequest), name),
    }
    return Message(to_record(answers[kind_of(message.content)](), with_local=True), reply_to=message)


def described(name: str, num_held_out: int, adapter_bytes: int) -> SiteDescription:
    """Return who the client is, whose first adapter has so many bytes."""
    return SiteDescription(
        client=name,
        num_examples=NUM_EXAMPLES,
        num_validation=0,
        num_held_out=num_held_out,
        metric_name="accuracy",
        labels=LABELS,
        base_model="idle",
        base_model_fingerprint="idle",
        data_fingerprint=name,
        version=version("fedlora"),
        lora_rank=1_000,
        has_own_held_out=True,
        adapter_bytes=adapter_bytes,
    )


def changed(packed: bytes, steps: int = 1) -> bytes:
    """Return a packed float32 adapter whose last number is higher by some steps."""
    content = bytearray(packed)
    (last,) = struct.unpack_from("<f", content, len(content) - 4)
    struct.pack_into("<f", content, len(content) - 4, last + steps * _STEP)
    return bytes(content)


def _trained(request: TrainRequest, name: str) -> TrainReceipt:
    if isinstance(request.adapter, PackedFile):
        raise TypeError("the adapter came as a file; the app is to be called behind `adapters_as_files`")
    return TrainReceipt(
        run=request.run,
        round=request.round,
        attempt=request.attempt,
        client=name,
        status=OK,
        num_examples=NUM_EXAMPLES,
        num_steps=1,
        loss=LOSS,
        adapter=changed(request.adapter),
    )


def _evaluated(request: EvaluateRequest, name: str) -> EvaluateReceipt:
    groups = {name: Score(NUM_EXAMPLES, LOSS, 0.5)}
    return EvaluateReceipt(request.run, request.round, request.shard, groups)
