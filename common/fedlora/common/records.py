"""Messages to and from Flower's records: one ConfigRecord for the fields, one Array for a packed adapter.

Flower's cost is per array, so an adapter travels as one Array of safetensors bytes under a stype of
our own. Flower's own strategies cannot read that.
"""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, MessageType, RecordDict
from pydantic import ValidationError

from fedlora.common.codec import Codec
from fedlora.common.errors import RunError
from fedlora.common.messages import (
    DescribeRequest,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.packed_file import Packed, PackedFile

_FIELDS = "fedlora"
_ADAPTER = "adapter"
_STYPE = "fedlora.safetensors/v1"
# Within one process: the array's bytes are the path of the file that holds the adapter.
_FILE_STYPE = "fedlora.file/v1"

Message = TypeVar("Message")

# Of each request, Flower's type of its message, and what answers it.
_QUESTIONS: dict[type, tuple[str, type]] = {
    DescribeRequest: (f"{MessageType.QUERY}.describe", SiteDescription),
    InitialiseRequest: (f"{MessageType.QUERY}.initialise", InitialiseReceipt),
    TrainRequest: (MessageType.TRAIN, TrainReceipt),
    EvaluateRequest: (MessageType.EVALUATE, EvaluateReceipt),
}

_codecs: dict[type, Codec[Any]] = {}  # building one takes milliseconds


def message_type_of(request: object) -> str:
    """Return Flower's type of the message that carries a request."""
    return _QUESTIONS[type(request)][0]


def receipt_type_of(request: object) -> type:
    """Return what a request is answered with, unless it is a Failure."""
    return _QUESTIONS[type(request)][1]


def to_record(message: object) -> RecordDict:
    """Return the records that carry one of the dataclasses of `messages`."""
    text = _codec(type(message)).dump(message, leave_out={_ADAPTER})
    content = RecordDict({_FIELDS: ConfigRecord({"type": type(message).__name__, "json": text})})
    put_adapter(content, getattr(message, _ADAPTER, b""))
    return content


def put_adapter(content: RecordDict, packed: Packed) -> None:
    """Put a packed adapter into the records, in place of the one that is there; nothing is put for empty bytes."""
    content.pop(_ADAPTER, None)
    if isinstance(packed, PackedFile):
        path = str(packed.path).encode()
        content[_ADAPTER] = ArrayRecord({_ADAPTER: Array("uint8", (packed.wire_bytes,), _FILE_STYPE, path)})
    elif packed:
        content[_ADAPTER] = ArrayRecord({_ADAPTER: Array("uint8", (len(packed),), _STYPE, packed)})


def adapter_in(content: RecordDict, *, with_files: bool = False) -> Packed:
    """Return the packed adapter in the records, empty bytes where there is none.

    Args:
        with_files: as for `from_record`.

    Raises:
        RunError: what stands in its place is no packed adapter.
    """
    return _packed(content, with_files=with_files) if _ADAPTER in content.array_records else b""


def from_record(content: RecordDict, expected: type[Message], *, with_files: bool = False) -> Message:
    """Return the message of type `expected` in `content`.

    Args:
        with_files: whether it comes from this very process and may name an adapter's file; a peer may not.

    Raises:
        RunError: the records hold something else; a client of another version, or not ours.
    """
    kind, text = _fields(content)
    if kind != expected.__name__:
        raise RunError(f"a peer sent {kind or 'records that are not fedlora messages'}; expected {expected.__name__}")
    try:
        message: Message = _codec(expected).load(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"a peer sent an unreadable {kind}: {where}: {first['msg']}") from error
    if not hasattr(message, _ADAPTER):
        return message
    return dataclasses.replace(message, adapter=adapter_in(content, with_files=with_files))  # type: ignore[type-var]


def reply_from_record(content: RecordDict, expected: type[Message], *, with_files: bool = False) -> Message | Failure:
    """Return the message of type `expected`, or the Failure that was answered in its place."""
    if kind_of(content) == Failure.__name__:
        return from_record(content, Failure)
    return from_record(content, expected, with_files=with_files)


def kind_of(content: RecordDict) -> str:
    """Return the name of the dataclass of `messages` that the records carry, nothing for others."""
    return _fields(content)[0]


def _fields(content: RecordDict) -> tuple[str, str]:
    record = content.config_records.get(_FIELDS)
    return ("", "") if record is None else (str(record.get("type", "")), str(record.get("json", "")))


def _packed(content: RecordDict, *, with_files: bool) -> Packed:
    array = content.array_records[_ADAPTER].get(_ADAPTER)
    if with_files and array is not None and array.stype == _FILE_STYPE:
        return PackedFile(Path(array.data.decode()), int(array.shape[0]))
    if array is None or array.stype != _STYPE:
        raise RunError(f"a peer sent an adapter that is not one array of the type {_STYPE}")
    return array.data


def _codec(kind: type) -> Codec[Any]:
    if kind not in _codecs:
        _codecs[kind] = Codec(kind)
    return _codecs[kind]
