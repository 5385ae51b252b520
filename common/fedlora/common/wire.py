"""Messages to and from our protobuf: the dataclasses of `messages`, without their adapters.

An adapter is named by its digest in the protobuf that surrounds these, and moves over the exchange.
What a peer sent is checked here, so that the rest may trust the types.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar, cast

from fedlora.common.errors import CODE, RunError
from fedlora.common.fates import PARTS
from fedlora.common.messages import (
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    Generated,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.v1 import messages_pb2 as pb
from fedlora.v1 import session_pb2

# Peers with different numbers refuse each other.
PROTOCOL = 3

# A run's id names a folder at the site.
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_ENTRIES = 1_000_000
_MAX_FATES = 100

K = TypeVar("K")
V = TypeVar("V")

Request = InitialiseRequest | TrainRequest | EvaluateRequest
Receipt = InitialiseReceipt | TrainReceipt | EvaluateReceipt | Failure


def write_request(request: Request, into: session_pb2.Request) -> None:
    """Write `request` without its adapter into the protobuf that carries it."""
    match request:
        case InitialiseRequest():
            into.initialise.CopyFrom(pb.InitialiseRequest(seed=request.seed))
        case TrainRequest():
            into.train.CopyFrom(
                pb.TrainRequest(
                    run=request.run,
                    round=request.round,
                    attempt=request.attempt,
                    seed=request.seed,
                    num_rounds=request.num_rounds,
                    validation_examples=request.validation_examples,
                    trains=request.trains,
                )
            )
        case EvaluateRequest():
            into.evaluate.CopyFrom(
                pb.EvaluateRequest(
                    run=request.run,
                    round=request.round,
                    num_examples=request.num_examples,
                    shard=request.shard,
                    num_shards=request.num_shards,
                    with_predictions=request.with_predictions,
                    num_generated=request.num_generated,
                    of_validation=request.of_validation,
                )
            )


def read_request(message: session_pb2.Request) -> Request:
    """Return the request, without its adapter.

    Raises:
        RunError: it is none that this version knows.
    """
    match message.WhichOneof("content"):
        case "initialise":
            return InitialiseRequest(message.initialise.seed)
        case "train":
            train = message.train
            trains = tuple(train.trains)
            if not trains or not set(trains) <= {"A", "B"}:
                raise RunError(f"the server asks to train {trains}; expected A, B or both")
            if train.round < 1 or train.num_rounds < 1:
                raise RunError(f"the server asks for round {train.round} of {train.num_rounds}; expected 1 or more")
            return TrainRequest(
                run=_run_id(train.run),
                round=train.round,
                attempt=train.attempt,
                seed=train.seed,
                num_rounds=train.num_rounds,
                validation_examples=train.validation_examples,
                trains=cast(tuple[Literal["A", "B"], ...], trains),
            )
        case "evaluate":
            evaluate = message.evaluate
            if evaluate.shard >= evaluate.num_shards:
                raise RunError(
                    f"the server asks for shard {evaluate.shard} of {evaluate.num_shards}; expected one of them"
                )
            return EvaluateRequest(
                run=_run_id(evaluate.run),
                round=evaluate.round,
                num_examples=evaluate.num_examples if evaluate.HasField("num_examples") else None,
                shard=evaluate.shard,
                num_shards=evaluate.num_shards,
                with_predictions=evaluate.with_predictions,
                num_generated=evaluate.num_generated,
                of_validation=evaluate.of_validation,
            )
    raise RunError("the server sent a request that this version does not know; update fedlora here")


def write_receipt(receipt: Receipt, into: session_pb2.Answer) -> None:
    """Write `receipt` without its adapter into the protobuf that carries it; of a failure only the code."""
    match receipt:
        case InitialiseReceipt():
            into.initialise.CopyFrom(pb.InitialiseReceipt())
        case TrainReceipt():
            into.train.CopyFrom(
                pb.TrainReceipt(
                    run=receipt.run,
                    round=receipt.round,
                    attempt=receipt.attempt,
                    client=receipt.client,
                    status=receipt.status,
                    num_examples=receipt.num_examples,
                    num_steps=receipt.num_steps,
                    loss=receipt.loss,
                    before=_score(receipt.before),
                    after=_score(receipt.after),
                    seconds=dict(receipt.seconds),
                    withheld=receipt.withheld,
                    num_tokens=receipt.num_tokens,
                    micro_batch_size=receipt.micro_batch_size,
                )
            )
        case EvaluateReceipt():
            into.evaluate.CopyFrom(
                pb.EvaluateReceipt(
                    run=receipt.run,
                    round=receipt.round,
                    shard=receipt.shard,
                    groups={name: cast(pb.Score, _score(score)) for name, score in receipt.groups.items()},
                    predictions=dict(receipt.predictions),
                    generated={
                        name: pb.Generated(
                            num_examples=part.num_examples, exact_match=part.exact_match, rouge_l=part.rouge_l
                        )
                        for name, part in receipt.generated.items()
                    },
                )
            )
        case Failure():
            into.failure.CopyFrom(pb.Failure(code=receipt.code))


def read_receipt(message: session_pb2.Answer) -> Receipt:
    """Return the receipt, without its adapter; what no peer of ours sends is a failure.

    Raises:
        RunError: a field is out of its bounds.
    """
    match message.WhichOneof("content"):
        case "initialise":
            return InitialiseReceipt()
        case "train":
            train = message.train
            return TrainReceipt(
                run=train.run,
                round=train.round,
                attempt=train.attempt,
                client=train.client,
                status=train.status,
                num_examples=train.num_examples,
                num_steps=train.num_steps,
                loss=train.loss,
                before=_read_score(train.before) if train.HasField("before") else None,
                after=_read_score(train.after) if train.HasField("after") else None,
                seconds=_bounded(train.seconds),
                withheld=tuple(train.withheld),
                num_tokens=train.num_tokens,
                micro_batch_size=train.micro_batch_size,
            )
        case "evaluate":
            evaluate = message.evaluate
            return EvaluateReceipt(
                run=evaluate.run,
                round=evaluate.round,
                shard=evaluate.shard,
                groups={name: _read_score(score) for name, score in _bounded(evaluate.groups).items()},
                predictions=_bounded(evaluate.predictions),
                generated={name: _read_generated(part) for name, part in _bounded(evaluate.generated).items()},
            )
        case "failure":
            code = message.failure.code
            if not re.fullmatch(CODE, code):
                raise RunError("a failure whose code is none")
            return Failure(code)
    raise RunError("an answer that this version does not know")


def write_description(description: SiteDescription) -> pb.SiteDescription:
    """Return what of the description leaves a site: neither labels nor names of files."""
    return pb.SiteDescription(
        num_examples=description.num_examples,
        num_validation=description.num_validation,
        num_held_out=description.num_held_out,
        metric_name=description.metric_name,
        base_model_fingerprint=description.base_model_fingerprint,
        data_fingerprint=description.data_fingerprint,
        version=description.version,
        lora_rank=description.lora_rank,
        fingerprints=dict(description.fingerprints),
        fates=[
            pb.Fate(part=part, code=code, num_examples=number)
            for part, fates in description.fates.items()
            for code, number in fates.items()
        ],
    )


def read_description(
    message: pb.SiteDescription, *, site: str, labels: tuple[str, ...], base_model: str
) -> SiteDescription:
    """Return the description of `site` in a run with these labels and this base model, which it has checked.

    Raises:
        RunError: a field is out of its bounds.
    """
    if message.lora_rank < 1:
        raise RunError(f"{site} trains rank {message.lora_rank}; expected 1 or more")
    return SiteDescription(
        client=site,
        num_examples=message.num_examples,
        num_validation=message.num_validation,
        num_held_out=message.num_held_out,
        metric_name=message.metric_name[:40],
        labels=labels,
        base_model=base_model,
        base_model_fingerprint=message.base_model_fingerprint[:100],
        data_fingerprint=message.data_fingerprint[:100],
        version=message.version[:40],
        lora_rank=message.lora_rank,
        has_own_held_out=True,
        fingerprints={name[:40]: digest[:100] for name, digest in _bounded(message.fingerprints).items()},
        fates=_read_fates(message.fates),
    )


def _read_fates(messages: Sequence[pb.Fate]) -> dict[str, dict[str, int]]:
    fates: dict[str, dict[str, int]] = {}
    if len(messages) > _MAX_FATES:
        raise RunError(f"{len(messages):,} fates of examples; expected at most {_MAX_FATES}")
    for message in messages:
        if message.part not in PARTS or not re.fullmatch(CODE, message.code):
            raise RunError("a fate of examples whose part or code is none")
        fates.setdefault(message.part, {})[message.code] = message.num_examples
    return fates


def _score(score: Score | None) -> pb.Score | None:
    if score is None:
        return None
    return pb.Score(num_examples=score.num_examples, loss=score.loss, metric=score.metric, num_tokens=score.num_tokens)


def _run_id(found: str) -> str:
    if not _RUN_ID.fullmatch(found):
        raise RunError(f"the server names the run {found[:64]!r}; expected letters, digits, _ and -")
    return found


def _read_score(message: pb.Score) -> Score:
    if message.num_examples < 1:
        raise RunError("a score over no examples")
    return Score(message.num_examples, message.loss, message.metric, message.num_tokens)


def _read_generated(message: pb.Generated) -> Generated:
    if message.num_examples < 1:
        raise RunError("generated answers to no examples")
    return Generated(message.num_examples, message.exact_match, message.rouge_l)


def _bounded(entries: Mapping[K, V]) -> dict[K, V]:
    if len(entries) > _MAX_ENTRIES:
        raise RunError(f"{len(entries):,} entries in one field; expected at most {_MAX_ENTRIES:,}")
    return dict(entries)
