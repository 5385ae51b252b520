"""The dataclasses of `messages` to and from their protobuf, by the names of their fields.

The proto is the schema: a dataclass has the message of its name, and each of its fields the field of its name. Only
packed adapters are none of them (`PACKED`): they go beside a message. Tuples hold plain values; a map in a map is a
message whose one field is a map. Fields that are `local` in the schema stay with the owner of the machine, unless
whoever writes or reads asks for them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from pydantic import TypeAdapter, ValidationError

from fedlora.common.bounds import BROKEN
from fedlora.common.errors import RunError
from fedlora.common.printable import printable
from fedlora.v1 import messages_pb2 as pb

ADAPTER, FORMER, MOMENTS = "adapter", "former", "moments"
# The fields of a message that are packed adapters, or moments.
PACKED = (ADAPTER, FORMER, MOMENTS)
_LOCAL: Any = pb.local

_adapters: dict[type, TypeAdapter[Any]] = {}  # building one takes milliseconds

T = TypeVar("T")


def to_proto(value: object, *, with_local: bool = False) -> Message:
    """Return the protobuf of a dataclass of `messages`.

    Args:
        with_local: whether it goes to another process of the same owner, with the fields that are local.
    """
    message = _empty(type(value).__name__)
    _write(value, message, with_local=with_local)
    return message


def from_proto(
    message: Message, expected: type[T], *, with_local: bool = False, known: Mapping[str, object] | None = None
) -> T:
    """Return the dataclass that a protobuf of its name stands for.

    Args:
        with_local: whether it comes from another process of the same owner; a peer's local fields are not read.
        known: fields that the reader knows better.

    Raises:
        RunError: a field is out of its bounds.
    """
    try:
        read: T = _adapter(expected).validate_python(_fields(message, with_local=with_local) | dict(known or {}))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == BROKEN:
            raise RunError(printable(first["msg"])) from error
        where = ".".join(str(part) for part in first["loc"])
        found = f"{printable(where, most=80)}: {first['msg']}"
        raise RunError(f"a peer sent an unreadable {expected.__name__}: {printable(found)}") from error
    return read


def parse(raw: bytes, kind: str) -> Message:
    """Return the protobuf of that name in its bytes.

    Raises:
        RunError: they are none.
    """
    if kind not in pb.DESCRIPTOR.message_types_by_name:
        raise RunError(f"a peer sent {kind[:40]!r}, which this version does not know")
    message = _empty(kind)
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise RunError(f"a peer sent an unreadable {kind}: {error}") from error
    return message


def serialised(message: Message) -> bytes:
    """Return the bytes of a protobuf, the same for the same content."""
    return message.SerializeToString(deterministic=True)


def discard_local(message: Message) -> None:
    """Take out of a peer's protobuf what it may not say: local fields."""
    for field in _layout(message.DESCRIPTOR):
        if field.is_local:
            message.ClearField(field.name)
        elif field.holds_messages and field.is_map:
            for part in getattr(message, field.name).values():
                discard_local(part)
        elif field.holds_messages and message.HasField(field.name):
            discard_local(getattr(message, field.name))


def is_local(field: FieldDescriptor) -> bool:
    """Return whether a field stays with the owner of the machine; what can hold words does unless it says otherwise."""
    options = field.GetOptions()
    is_marked: bool = options.Extensions[_LOCAL]
    return is_marked if options.HasExtension(_LOCAL) else holds_words(field)


def holds_words(field: FieldDescriptor) -> bool:
    """Return whether text can stand in a field itself, or in the keys or values of a map."""
    parts = field.message_type.fields if is_map(field) else [field]
    return any(part.type == FieldDescriptor.TYPE_STRING for part in parts)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def inner_map(kind: Any) -> str:
    """Return the name of the only field of what stands for a map in a map, by its descriptor; nothing for others."""
    return kind.fields[0].name if len(kind.fields) == 1 and is_map(kind.fields[0]) else ""


@dataclass(frozen=True)
class _Field:
    """What the mapping needs to know of a field; `inner` is the name of the map in the map that it is."""

    name: str
    is_local: bool
    is_map: bool
    is_repeated: bool
    holds_messages: bool
    has_presence: bool
    inner: str


@cache
def _layout(kind: Any) -> tuple[_Field, ...]:
    """Return the fields of a message by its descriptor, which is slow to ask."""
    return tuple(map(_described, kind.fields))


def _described(field: FieldDescriptor) -> _Field:
    inside = field.message_type.fields_by_name["value"] if is_map(field) else field
    return _Field(
        field.name,
        is_local=is_local(field),
        is_map=is_map(field),
        is_repeated=field.is_repeated,
        holds_messages=inside.message_type is not None,
        has_presence=field.has_presence,
        inner="" if inside.message_type is None else inner_map(inside.message_type),
    )


def _empty(kind: str) -> Message:
    message: Message = getattr(pb, kind)()
    return message


def _write(value: object, message: Message, *, with_local: bool) -> None:
    for field in _layout(message.DESCRIPTOR):
        found: Any = getattr(value, field.name) if with_local or not field.is_local else None
        if found is None:
            continue
        if field.is_map:
            _write_map(found, getattr(message, field.name), field, with_local=with_local)
        elif field.is_repeated:
            getattr(message, field.name).extend(map(_sendable, found))
        elif field.holds_messages:
            part = getattr(message, field.name)
            part.SetInParent()
            _write(found, part, with_local=with_local)
        else:
            setattr(message, field.name, _sendable(found))


def _write_map(found: Mapping[Any, Any], entries: Any, field: _Field, *, with_local: bool) -> None:
    if not field.holds_messages:
        entries.update(found)
        return
    for key, item in found.items():
        if field.inner:
            getattr(entries[key], field.inner).update(item)
        else:
            _write(item, entries[key], with_local=with_local)


def _sendable(value: object) -> object:
    """Return text without lone surrogates, as of a file's name that is no UTF-8: protobuf refuses them."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def _fields(message: Message, *, with_local: bool) -> dict[str, Any]:
    return {
        field.name: _read(message, field, with_local=with_local)
        for field in _layout(message.DESCRIPTOR)
        if with_local or not field.is_local
    }


def _read(message: Message, field: _Field, *, with_local: bool) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    found = getattr(message, field.name)
    if field.is_map:
        # Protobuf keeps no order of them, and sums over them must not depend on one.
        return {key: _read_item(item, field, with_local=with_local) for key, item in sorted(found.items())}
    if field.is_repeated:
        return list(found)
    return _fields(found, with_local=with_local) if field.holds_messages else found


def _read_item(item: Any, field: _Field, *, with_local: bool) -> Any:
    if field.inner:
        return dict(sorted(getattr(item, field.inner).items()))
    return _fields(item, with_local=with_local) if field.holds_messages else item


def _adapter(kind: type) -> TypeAdapter[Any]:
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]
