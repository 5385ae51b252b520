"""Messages that no site of ours sends: unknown and mistyped fields, and more in one than a message holds."""

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import Conversation, OpenPort, named, open_port, refusal, wait_until
from peers import small_adapter

from fedlora.adapters import pack
from fedlora.common.channels import open_channel
from fedlora.common.messages import Failure, TrainReceipt, TrainRequest
from fedlora.common.records import from_record, kind_of
from fedlora.common.wire import PROTOCOL
from fedlora.server.rounds.admission import Refusal, admit
from fedlora.v1 import messages_pb2, session_pb2

NORTH = named("north")
_VARINT, _FIXED64, _LENGTH = 0, 1, 2


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


@contextmanager
def asked(channel: grpc.Channel) -> Iterator[tuple[Conversation, session_pb2.Request]]:
    """Give the session of a site that is ready, and the request that it got."""
    with Conversation(channel, NORTH) as conversation:
        conversation.hear("welcome")
        description = messages_pb2.SiteDescription(num_examples=1, lora_rank=2)
        conversation.say(readiness=session_pb2.Readiness(description=description))
        yield conversation, conversation.hear("request").request


def field(number: int, wire_type: int, content: bytes) -> bytes:
    """Return a field of protobuf, byte by byte: also of a number or a type that the schema has not."""
    tag, written = number << 3 | wire_type, b""
    while tag > 127:
        written, tag = written + bytes([tag & 127 | 128]), tag >> 7
    length = bytes([len(content)]) if wire_type == _LENGTH else b""
    return written + bytes([tag]) + length + content


def entry(name: bytes, value: bytes) -> bytes:
    """Return an entry of `seconds` whose value is what it should not be."""
    return field(11, _LENGTH, field(1, _LENGTH, name) + value)


def reply_with(port: OpenPort, extra: bytes) -> TrainReceipt | Failure:
    """Return what the rounds get of a receipt with these bytes behind it."""
    port.ask_for_update("north")
    receipt = messages_pb2.TrainReceipt(run="run", round=1, client="north", status="ok", loss=0.5)
    receipt.MergeFromString(extra)
    with open_channel(port.address, None) as channel, asked(channel) as (conversation, request):
        conversation.say(answer=session_pb2.Answer(request_id=request.request_id, train=receipt))
        while not (found := list(port.grid.pull_messages(port.asked))):
            pass
    (message,) = found
    kind = Failure if kind_of(message.content) == "Failure" else TrainReceipt
    return from_record(message.content, kind, with_files=True)


@pytest.mark.parametrize(
    "extra",
    [
        field(1023, _LENGTH, b"perplexity") + field(900, _FIXED64, bytes(8)) + field(901, _VARINT, b"\x01"),
        field(9, _VARINT, b"\x05"),
        field(11, _FIXED64, struct.pack("<d", 1.0)),
        field(12, _VARINT, b"\x01"),
    ],
    ids=["unknown numbers", "a score that is a number", "seconds that are a number", "withheld that is a number"],
)
def test_case_13_unknown_and_mistyped_metrics_are_ignored(port: OpenPort, extra: bytes) -> None:
    reply = reply_with(port, extra)
    assert isinstance(reply, TrainReceipt)
    assert (reply.loss, reply.before, dict(reply.seconds), reply.withheld) == (0.5, None, {}, ())


def test_case_13_seconds_that_are_no_number_are_none(port: OpenPort) -> None:
    reply = reply_with(port, entry(b"training", field(2, _LENGTH, b"long")) + entry(b"forward", b""))
    assert isinstance(reply, TrainReceipt)
    assert set(reply.seconds.values()) <= {0.0}


@pytest.mark.parametrize(
    "sent",
    [
        field(6, _VARINT, b"\x00"),
        field(6, _VARINT, b"\xff" * 9 + b"\x01"),
        field(6, _VARINT, b"\x80\xa0\x94\xa5\x8d\x1d"),
        field(6, _VARINT, b"\xff" * 8 + b"\x7f"),
        # An integer's field has no NaN: what is sent as one is not read at all.
        field(6, _FIXED64, struct.pack("<d", float("nan"))),
        field(6, _LENGTH, b"many"),
    ],
    ids=["0", "-1", "1e12", "2^63 - 1", "NaN", "text"],
)
def test_case_9_a_number_of_examples_that_is_none_is_refused(port: OpenPort, sent: bytes) -> None:
    reply = reply_with(port, sent)
    request = TrainRequest("run", 1, 0, 0, 1, 0, pack(small_adapter()))
    if isinstance(reply, TrainReceipt):
        refusal = admit(reply, request=request, client="north", num_examples=10, reference=small_adapter())
        assert isinstance(refusal, Refusal)
        assert refusal.code == "num_examples"
    else:
        assert reply.code == "unreadable"


def test_a_million_groups_are_more_than_a_message_holds_and_end_that_connection_alone(port: OpenPort) -> None:
    port.ask_for_update("north")
    # Byte for byte: making a map of a million entries takes longer than sending it.
    group = field(4, _LENGTH, field(1, _LENGTH, b"a group of its own") + field(2, _LENGTH, field(1, _VARINT, b"\x01")))
    evaluate = messages_pb2.EvaluateReceipt(run="run", round=1).SerializeToString() + 1_000_000 * group
    words = [
        session_pb2.ConnectRequest(hello=session_pb2.Hello(protocol=PROTOCOL)).SerializeToString(),
        long_field(3, long_field(5, evaluate)),
    ]
    with grpc.insecure_channel(port.address, [("grpc.max_send_message_length", -1)]) as channel:
        call = channel.stream_stream("/fedlora.v1.SessionService/Connect")(iter(words), metadata=NORTH, timeout=30)
        status, _ = refusal(lambda: list(call))
        assert status is not grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: port.states["north"] == "away")
    with open_channel(port.address, None) as channel, asked(channel) as (_, request):
        assert request.HasField("train")


def long_field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf that is longer than 127 bytes."""
    length, written = len(content), b""
    while length > 127:
        written, length = written + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | _LENGTH]) + written + bytes([length]) + content
