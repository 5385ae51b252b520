"""The gate of a Flower round: each reply is judged by itself against what was sent, before anything is averaged."""

import io
import math
import tokenize
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from numpy.lib import format as npy
from torch import Tensor

from fedlora.adapters.fit import MAX_VALUE, bad_value
from fedlora.adapters.keys import factor_of
from fedlora.common.errors import AdapterError, FedloraError, RunError, one_line

_MAX_CHARACTERS = 300
_NUMPY = "numpy.ndarray"
# What is trained is float32; beside it a module that is trained whole may count something, as a batch norm does.
_DTYPES = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.bool: "bool",
}
# Up to here the mean of counts is exact.
_MAX_COUNT = 2**53
# What an array's header, which numpy reads as Python, may raise.
_UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError)
# A client whose model is in bfloat16 gives a factor back that it did not train with so much error, one in float16
# with less, beside what is too small for it.
_ROUNDING, _SMALLEST = 2**-8, 1e-7

Content = TypeVar("Content")


@dataclass(frozen=True)
class Refused:
    """A reply that does not count, or a node that gave none."""

    node_id: int
    reason: str


@dataclass(frozen=True, eq=False)
class Judged(Generic[Content]):
    """The replies of a round: what was read from those that count, by node id, and the others."""

    accepted: dict[int, Content] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Update:
    """A train reply that counts.

    Attributes:
        weight: of this client against the others'.
        tensors: by PEFT's key names, of the types that were sent: float32, and integers where a module counts.
        content: the reply's records.
    """

    weight: float
    tensors: Mapping[str, Tensor]
    content: RecordDict


def judge(
    replies: Iterable[Message], asked: Sequence[Message], read: Callable[[RecordDict], Content]
) -> Judged[Content]:
    """Return the replies to `asked`, of which those count whose content `read` takes without a FedloraError."""
    # An error reply for a node that is gone does not come from that node.
    nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
    judged: Judged[Content] = Judged()
    for reply in replies:
        metadata = reply.metadata
        node_id = nodes.get(metadata.reply_to_message_id or "?", metadata.src_node_id)
        try:
            if node_id in judged.accepted:
                raise RunError("a second reply to one message; the first counts")
            if reply.has_error():
                raise RunError(f"error {reply.error.code}: {reply.error.reason}")
            judged.accepted[node_id] = read(reply.content)
        except FedloraError as error:
            # A peer may have chosen some of the text, such as a key.
            judged.refused.append(Refused(node_id, one_line(error, most=_MAX_CHARACTERS)))
    answered = {*judged.accepted, *(refused.node_id for refused in judged.refused)}
    judged.refused.extend(
        Refused(message.metadata.dst_node_id, "no reply before the timeout")
        for message in asked
        if message.metadata.dst_node_id not in answered
    )
    return judged


def read_update(
    content: RecordDict, *, sent: Mapping[str, Tensor], trains: Collection[str], weighted_by: str, max_weight: float
) -> Update:
    """Return the update in a train reply.

    Args:
        sent: the tensors that the round started from, without a change of the base weights.
        trains: the factors that clients train; the other must come back as it was sent.

    Raises:
        FedloraError: the reply cannot be averaged, or should not.
    """
    weight = read_weight(content, weighted_by=weighted_by, max_weight=max_weight)
    if len(content.array_records) != 1:
        raise RunError(f"{len(content.array_records)} ArrayRecords; expected one")
    (arrays,) = content.array_records.values()
    if missing := sorted(sent.keys() - arrays.keys()):
        raise AdapterError(f"{len(missing)} keys missing, the first {missing[0]}; expected all that were sent")
    if extra := sorted(arrays.keys() - sent.keys()):
        raise AdapterError(f"{len(extra)} extra keys, the first {extra[0]}; expected the LoRA tensors that were sent")
    tensors = {
        key: _tensor(key, arrays[key], shape=tuple(like.shape), dtype=_DTYPES[like.dtype]) for key, like in sent.items()
    }
    for factor in {"A", "B"} - set(trains):
        for key in (key for key in sent if factor_of(key) == factor):
            if bool(((tensors[key] - sent[key]).abs() > _ROUNDING * sent[key].abs() + _SMALLEST).any()):
                raise AdapterError(
                    f"{key} has changed, and this round trains {', '.join(trains)} only; "
                    "load the round with fedlora.training.flower_round.load_round, which freezes the other factor"
                )
            tensors[key] = sent[key]
    return Update(weight, tensors, content)


def read_weight(content: RecordDict, *, weighted_by: str, max_weight: float) -> float:
    """Return the weight in a reply's only MetricRecord.

    Raises:
        RunError: there is none, or it is not a positive number up to `max_weight`.
    """
    if len(content.metric_records) != 1:
        raise RunError(f"{len(content.metric_records)} MetricRecords; expected one")
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by)
    if not isinstance(weight, int | float):
        raise RunError(f"{weighted_by} is {weight!r}; expected a number in the MetricRecord")
    if not 0 < weight <= max_weight:
        raise RunError(f"{weighted_by} is {weight:g}; expected more than 0, at most {max_weight:g}")
    return float(weight)


def in_fixed_order(updates: Mapping[int, Update]) -> list[tuple[int, Update]]:
    """Return node ids and updates in an order that depends on the updates alone.

    Node ids differ from run to run, and replies come as they come; the last bits of a sum would follow.
    """

    def content(entry: tuple[int, Update]) -> tuple[float, list[bytes]]:
        (arrays,) = entry[1].content.array_records.values()
        return entry[1].weight, [arrays[key].data for key in entry[1].tensors]

    return sorted(updates.items(), key=content)


def tensors_in(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors in a record of the server's own, by key.

    Raises:
        AdapterError: an array is not float32, and no count either.
    """
    counted = set(_DTYPES.values())
    return {
        key: _tensor(
            key,
            array,
            shape=tuple(array.shape),
            dtype=array.dtype if array.dtype in counted else _DTYPES[torch.float32],
        )
        for key, array in arrays.items()
    }


def _tensor(key: str, array: Array, *, shape: tuple[int, ...], dtype: str) -> Tensor:
    """Return a tensor of exactly this shape and type; no memory is taken for what the array says of itself."""
    if array.stype != _NUMPY:
        raise AdapterError(f"{key} is serialised as {array.stype}; expected {_NUMPY}, as Array(tensor) does")
    file = io.BytesIO(array.data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        found_shape, is_fortran, found = read_header(file)
    except _UNREADABLE as error:
        raise AdapterError(f"{key} is no array of numpy ({type(error).__name__})") from error
    if found_shape != shape or tuple(array.shape) != shape:
        raise AdapterError(f"{key} has shape {found_shape}; expected {shape}")
    if found != np.dtype(dtype) or array.dtype != dtype:
        cure = "as tensor.float() gives" if dtype == "float32" else "as it was sent"
        raise AdapterError(f"{key} is {found}; expected {dtype}, {cure}")
    values, size = memoryview(array.data)[file.tell() :], math.prod(shape) * found.itemsize
    if len(values) != size:
        raise AdapterError(f"{key} has {len(values):,} bytes of numbers; expected {size:,}")
    numbers = np.frombuffer(values, found).reshape(shape, order="F" if is_fortran else "C")
    tensor = torch.from_numpy(np.array(numbers, order="C"))
    if misfit := bad_value([(key, tensor)], most=MAX_VALUE if tensor.is_floating_point() else _MAX_COUNT):
        raise AdapterError(misfit.found)
    return tensor
