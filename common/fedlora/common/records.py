"""Messages to and from Flower's records: one ConfigRecord for the fields, one Array for a packed adapter.

Flower's cost is per array, so an adapter travels as one Array of safetensors bytes under a stype of
our own. Flower's own strategies cannot read that.
"""

import dataclasses
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import ValidationError

from fedlora.common.codec import Codec
from fedlora.common.errors import RunError
from fedlora.common.messages import Failure

_FIELDS = "fedlora"
_ADAPTER = "adapter"
_STYPE = "fedlora.safetensors/v1"

Message = TypeVar("Message")

_codecs: dict[type, Codec[Any]] = {}  # building one takes milliseconds


def to_record(message: object) -> RecordDict:
    """Return the records that carry one of the dataclasses of `messages`."""
    text = _codec(type(message)).dump(message, leave_out={_ADAPTER})
    content = RecordDict({_FIELDS: ConfigRecord({"type": type(message).__name__, "json": text})})
    packed = getattr(message, _ADAPTER, b"")
    if packed:
        content[_ADAPTER] = ArrayRecord({_ADAPTER: Array("uint8", (len(packed),), _STYPE, packed)})
    return content


def from_record(content: RecordDict, expected: type[Message]) -> Message:
    """Return the message of type `expected` in `content`.

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
    if _ADAPTER not in content.array_records or not hasattr(message, _ADAPTER):
        return message
    return dataclasses.replace(message, adapter=_packed(content))  # type: ignore[type-var]


def reply_from_record(content: RecordDict, expected: type[Message]) -> Message | Failure:
    """Return the message of type `expected`, or the Failure that was answered in its place."""
    if _fields(content)[0] == Failure.__name__:
        return from_record(content, Failure)
    return from_record(content, expected)


def _fields(content: RecordDict) -> tuple[str, str]:
    record = content.config_records.get(_FIELDS)
    return ("", "") if record is None else (str(record.get("type", "")), str(record.get("json", "")))


def _packed(content: RecordDict) -> bytes:
    array = content.array_records[_ADAPTER].get(_ADAPTER)
    if array is None or array.stype != _STYPE:
        raise RunError(f"a peer sent an adapter that is not one array of the type {_STYPE}")
    return array.data


def _codec(kind: type) -> Codec[Any]:
    if kind not in _codecs:
        _codecs[kind] = Codec(kind)
    return _codecs[kind]
