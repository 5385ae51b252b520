"""Messages to and from Flower's records: their protobuf's bytes in a ConfigRecord, each packed adapter as one Array.

Flower's cost is per array, so an adapter travels as one Array of safetensors bytes under a stype of
our own. Flower's own strategies cannot read that.
"""

import dataclasses
from pathlib import Path
from typing import TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict
from google.protobuf.message import Message as Proto

from fedlora.common.errors import RunError
from fedlora.common.messages import (
    DescribeRequest,
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
from fedlora.common.packed_file import Packed, PackedFile
from fedlora.common.schema import ADAPTER, PACKED, discard_local, from_proto, parse, serialised, to_proto

_MESSAGE = "fedlora"
_STYPE = "fedlora.safetensors/v1"
# Within one process: the array's bytes are the digest, if it is known, and the path of the file that holds the adapter.
_FILE_STYPE = "fedlora.file/v1"

Message = TypeVar("Message")

# Of each request, Flower's type of its message, and what answers it.
_QUESTIONS: dict[type, tuple[str, type]] = {
    DescribeRequest: (f"{MessageType.QUERY}.describe", SiteDescription),
    InitialiseRequest: (f"{MessageType.QUERY}.initialise", InitialiseReceipt),
    TrainRequest: (MessageType.TRAIN, TrainReceipt),
    EvaluateRequest: (MessageType.EVALUATE, EvaluateReceipt),
    SumRequest: (f"{MessageType.QUERY}.sum", SumReceipt),
}


def message_type_of(request: object) -> str:
    """Return Flower's type of the message that carries a request."""
    return _QUESTIONS[type(request)][0]


def receipt_type_of(request: object) -> type:
    """Return what a request is answered with, unless it is a Failure."""
    return _QUESTIONS[type(request)][1]


def to_record(message: object, *, with_local: bool = False) -> RecordDict:
    """Return the records that carry one of the dataclasses of `messages`.

    Args:
        with_local: whether it goes to another process of the same owner, with the fields that are local.
    """
    content = carrying(to_proto(message, with_local=with_local))
    for name in PACKED:
        put_adapter(content, getattr(message, name, b""), name=name)
    return content


def carrying(message: Proto) -> RecordDict:
    """Return the records that carry a message's protobuf, without an adapter."""
    record = ConfigRecord({"type": message.DESCRIPTOR.name, "message": serialised(message)})
    return RecordDict({_MESSAGE: record})


def put_adapter(content: RecordDict, packed: Packed, *, name: str = ADAPTER) -> None:
    """Put a packed adapter into the records, in place of the one that is there; nothing is put for empty bytes.

    Args:
        name: of the field of the message that it is.
    """
    content.pop(name, None)
    if isinstance(packed, PackedFile):
        place = f"{packed.sha256}:{packed.path}".encode()
        content[name] = ArrayRecord({name: Array("uint8", (packed.wire_bytes,), _FILE_STYPE, place)})
    elif packed:
        content[name] = ArrayRecord({name: Array("uint8", (len(packed),), _STYPE, packed)})


def adapter_in(content: RecordDict, *, name: str = ADAPTER, with_files: bool = False) -> Packed:
    """Return the packed adapter in the records, empty bytes where there is none.

    Args:
        name: of the field of the message that it is.
        with_files: as for `from_record`.

    Raises:
        RunError: what stands in its place is no packed adapter.
    """
    arrays = content.get(name)
    return _packed(arrays, name, with_files=with_files) if isinstance(arrays, ArrayRecord) else b""


def from_record(
    content: RecordDict, expected: type[Message], *, with_files: bool = False, with_local: bool = False
) -> Message:
    """Return the message of type `expected` in `content`.

    Args:
        with_files: whether it comes from this very process and may name an adapter's file; a peer may not.
        with_local: whether it comes from another process of the same owner; a peer's local fields are not read.

    Raises:
        RunError: the records hold something else; a client of another version, or not ours.
    """
    kind = kind_of(content)
    if kind != expected.__name__:
        raise RunError(f"a peer sent {kind or 'records that are not fedlora messages'}; expected {expected.__name__}")
    message = from_proto(carried(content), expected, with_local=with_local)
    packed = {name: adapter_in(content, name=name, with_files=with_files) for name in PACKED if hasattr(message, name)}
    return dataclasses.replace(message, **packed) if packed else message  # type: ignore[type-var]


def reply_from_record(
    content: RecordDict, expected: type[Message], *, with_files: bool = False, with_local: bool = False
) -> Message | Failure:
    """Return the message of type `expected`, or the Failure that was answered in its place."""
    if kind_of(content) == Failure.__name__:
        failure = from_record(content, Failure, with_files=with_files, with_local=with_local)
        # Only a server's own process says what came beside an answer that it could not read.
        return failure if with_files else dataclasses.replace(failure, adapter=b"")
    return from_record(content, expected, with_files=with_files, with_local=with_local)


def from_peer(content: RecordDict, *, known: Proto) -> RecordDict:
    """Return another owner's records without what is local; a message of the kind of `known` gets what that says.

    What cannot be read stays as it is: whoever reads it says so.
    """
    try:
        message = carried(content)
    except RunError:
        return content
    discard_local(message)
    if message.DESCRIPTOR is known.DESCRIPTOR:
        message.MergeFrom(known)
    return RecordDict({**content, **carrying(message)})


def kind_of(content: RecordDict) -> str:
    """Return the name of the dataclass of `messages` that the records carry, nothing for others."""
    record = content.get(_MESSAGE)
    kind = record.get("type") if isinstance(record, ConfigRecord) else None
    return kind if isinstance(kind, str) else ""


def carried(content: RecordDict) -> Proto:
    """Return the protobuf of the message that the records carry.

    Raises:
        RunError: its bytes are none.
    """
    kind, record = kind_of(content), content.get(_MESSAGE)
    raw = record.get("message") if isinstance(record, ConfigRecord) and kind else None
    if not isinstance(raw, bytes):
        raise RunError(f"a peer sent an unreadable {kind or 'message'}: its bytes are missing")
    return parse(raw, kind)


def _packed(arrays: ArrayRecord, name: str, *, with_files: bool) -> Packed:
    array = arrays.get(name)
    if with_files and array is not None and array.stype == _FILE_STYPE:
        sha256, _, path = array.data.decode().partition(":")
        return PackedFile(Path(path), int(array.shape[0]), sha256)
    if array is None or array.stype != _STYPE:
        raise RunError(f"a peer sent an adapter that is not one array of the type {_STYPE}")
    return array.data
