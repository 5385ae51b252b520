"""Messages in the protobuf of a session, without their adapters.

An adapter is named by its digest in the protobuf that surrounds these, and moves over the exchange.
"""

from dataclasses import replace
from typing import cast, get_args

from google.protobuf.message import Message

from fedlora.common.errors import RunError
from fedlora.common.messages import (
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
from fedlora.common.schema import from_proto, to_proto
from fedlora.v1 import messages_pb2 as pb
from fedlora.v1 import session_pb2

# Peers with different numbers refuse each other.
PROTOCOL = 5

Request = InitialiseRequest | TrainRequest | EvaluateRequest | SumRequest
Receipt = InitialiseReceipt | TrainReceipt | EvaluateReceipt | SumReceipt | Failure

_REQUESTS: dict[str, type[Request]] = {kind.__name__: kind for kind in get_args(Request)}
_RECEIPTS: dict[str, type[Receipt]] = {kind.__name__: kind for kind in get_args(Receipt)}


def put(content: Message, into: Message) -> None:
    """Put a message's protobuf into the field for its kind of the one that carries it."""
    fields = into.DESCRIPTOR.oneofs_by_name["content"].fields
    name = next(field.name for field in fields if field.message_type is content.DESCRIPTOR)
    getattr(into, name).CopyFrom(content)


def write_request(request: Request, into: session_pb2.Request) -> None:
    """Write `request` without its adapter into the protobuf that carries it."""
    put(to_proto(request), into)


def read_request(message: session_pb2.Request) -> Request:
    """Return the request, without its adapter.

    Raises:
        RunError: it is none that this version knows, or a field is out of its bounds.
    """
    name = message.WhichOneof("content")
    if name is None:
        raise RunError("the server sent a request that this version does not know; update fedlora here")
    content: Message = getattr(message, name)
    return from_proto(content, _REQUESTS[content.DESCRIPTOR.name])


def write_receipt(receipt: Receipt, into: session_pb2.Answer) -> None:
    """Write `receipt` without its adapter into the protobuf that carries it; of a failure only the code."""
    put(to_proto(receipt), into)


def read_receipt(message: session_pb2.Answer) -> Receipt:
    """Return the receipt, without its adapter.

    Raises:
        RunError: it is none that this version knows, or a field is out of its bounds.
    """
    content = receipt_in(message)
    return from_proto(content, _RECEIPTS[content.DESCRIPTOR.name])


def receipt_in(message: session_pb2.Answer) -> Message:
    """Return the receipt's own protobuf, unchecked.

    Raises:
        RunError: it is none that this version knows.
    """
    name = message.WhichOneof("content")
    if name is None:
        raise RunError("an answer that this version does not know")
    content: Message = getattr(message, name)
    return content


def write_description(description: SiteDescription) -> pb.SiteDescription:
    """Return what of the description goes to a server, which knows from the connection whose it is.

    The data's fingerprint stays: who knows all examples but one would know that one by it.
    """
    return cast(pb.SiteDescription, to_proto(replace(description, client="", data_fingerprint="")))


def read_description(
    message: pb.SiteDescription, *, site: str, labels: tuple[str, ...], base_model: str
) -> SiteDescription:
    """Return the description of `site` in a run with these labels and this base model, which it has checked.

    Raises:
        RunError: a field is out of its bounds.
    """
    known = {"client": site, "labels": labels, "base_model": base_model, "has_own_held_out": True}
    return from_proto(message, SiteDescription, known=known)
