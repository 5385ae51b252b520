"""Messages in Flower's records: there and back, and what is refused on the way."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora.common.errors import RunError
from fedlora.common.messages import (
    DescribeRequest,
    EvaluateReceipt,
    EvaluateRequest,
    Failure,
    InitialiseReceipt,
    InitialiseRequest,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.records import carrying, from_peer, from_record, reply_from_record, to_record
from fedlora.common.schema import PACKED, to_proto
from fedlora.v1 import messages_pb2 as pb

RECEIPT = TrainReceipt(
    "run", 1, 0, "größer/大", "ok", 10, 8, 0.5, None, Score(3, 0.1, 0.9), {"backward": 1.5}, b"tensors"
)
MESSAGES = [
    DescribeRequest(),
    SiteDescription("a", 5, 1, 0, "accuracy", ("x", "ü"), "base", "f" * 64, "d" * 64, "0.1.0", 8),
    InitialiseRequest(2**63),
    InitialiseReceipt(b"\0\1"),
    TrainRequest("run", 3, 1, 0, 10, 64, b"tensors", former=b"older tensors"),
    RECEIPT,
    TrainReceipt("run", 1, 0, "a", "loss_not_finite", loss=float("inf")),
    EvaluateRequest("run", 0, None, 0, 2, True, b"tensors"),
    EvaluateReceipt("run", 0, 0, {"site": Score(1, float("nan"), 0.0)}, {0: 1, 4: 2}),
    Failure("internal", "line\nline"),
]


def changed(message: object, **fields: Any) -> RecordDict:
    """Return the records of `message` with other fields."""
    proto = to_proto(message)
    for name, value in fields.items():
        proto.ClearField(name)
        proto.MergeFrom(type(proto)(**{name: value}))
    return carrying(proto)


def bytes_in(content: RecordDict) -> bytes:
    raw = content.config_records["fedlora"]["message"]
    assert isinstance(raw, bytes)
    return raw


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: object) -> None:
    found = from_record(to_record(message, with_local=True), type(message), with_local=True)
    assert repr(found) == repr(message)
    for name in PACKED:
        assert getattr(found, name, None) == getattr(message, name, None)


def test_an_adapter_travels_as_one_array_and_not_in_the_text() -> None:
    content = to_record(RECEIPT)
    (array,) = content.array_records["adapter"].values()
    assert array.data == b"tensors"
    assert b"tensors" not in bytes_in(content)


def test_a_failure_may_come_in_place_of_any_receipt() -> None:
    failure = Failure("data", "no such file")
    assert reply_from_record(to_record(failure, with_local=True), TrainReceipt, with_local=True) == failure
    assert reply_from_record(to_record(RECEIPT), TrainReceipt) == RECEIPT


def test_another_message_than_the_expected_is_refused_by_name() -> None:
    with pytest.raises(RunError, match="a peer sent EvaluateRequest; expected TrainReceipt"):
        from_record(to_record(MESSAGES[7]), TrainReceipt)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"fedlora": MetricRecord({"loss": 1.0})}),
        RecordDict({"fedlora": ConfigRecord({"type": 5})}),
        RecordDict({"other": ConfigRecord({"type": "TrainReceipt", "message": b""})}),
    ],
)
def test_records_of_another_kind_are_refused(content: RecordDict) -> None:
    with pytest.raises(RunError, match=r"a peer sent .*; expected TrainReceipt"):
        from_record(content, TrainReceipt)


def test_a_field_out_of_its_bounds_is_refused_by_name() -> None:
    record = to_record(Failure("data", "x" * 2001), with_local=True)
    with pytest.raises(RunError, match="a peer sent an unreadable Failure: text: "):
        from_record(record, Failure, with_local=True)
    with pytest.raises(RunError, match="a peer sent an unreadable SiteDescription: labels: "):
        from_record(to_record(MESSAGES[1]), SiteDescription)


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_broken_bound_has_its_own_line(place: str) -> None:
    with pytest.raises(RunError, match=r"^a score over no examples$"):
        from_record(changed(RECEIPT, **{place: pb.Score(loss=1.0)}), TrainReceipt)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"null", b"\xed\xa0\x80", b"\x0a\x01\xff", b"\x0a\x05run", "", "text", 5])
def test_bytes_that_are_no_message_are_refused(raw: bytes | str | int) -> None:
    content = RecordDict({"fedlora": ConfigRecord({"type": "TrainReceipt", "message": raw})})
    with pytest.raises(RunError, match="a peer sent an unreadable TrainReceipt"):
        from_record(content, TrainReceipt)


def test_a_message_cut_anywhere_is_never_another_error() -> None:
    raw = bytes_in(to_record(RECEIPT))
    for length in range(len(raw)):
        content = RecordDict({"fedlora": ConfigRecord({"type": "TrainReceipt", "message": raw[:length]})})
        with suppress(RunError):
            from_record(content, TrainReceipt)


@pytest.mark.parametrize("added", [b"\xba\x3e\x03low", b"\xc0\x3e\x03", b"\x32\x04many"])
def test_fields_that_nobody_here_knows_are_ignored(added: bytes) -> None:
    """The last is one of a known number in another type."""
    content = to_record(RECEIPT)
    content.config_records["fedlora"]["message"] = bytes_in(content) + added
    assert from_record(content, TrainReceipt) == RECEIPT


def test_what_another_owner_may_not_say_is_taken_out_of_its_records() -> None:
    described = MESSAGES[1]
    assert isinstance(described, SiteDescription)
    known = pb.SiteDescription(labels=["0", "1"], base_model="the run's")
    content = to_record(replace(described, notes=("a column",)), with_local=True)
    content["other"] = ConfigRecord({"x": 1})
    found = from_peer(content, known=known)
    assert from_record(found, SiteDescription, with_local=True) == replace(
        described, labels=("0", "1"), base_model="the run's"
    )
    assert b"a column" not in bytes_in(found)
    assert "other" in found
    failure = from_peer(to_record(Failure("data", "patients.csv"), with_local=True), known=known)
    assert from_record(failure, Failure, with_local=True) == Failure("data")
    receipt = from_peer(to_record(RECEIPT), known=known)
    assert from_record(receipt, TrainReceipt) == RECEIPT


@pytest.mark.parametrize(
    "record", [{}, {"type": "DESCRIPTOR", "message": b""}, {"type": "TrainReceipt", "message": b"{"}, {"type": 5}]
)
def test_what_cannot_be_read_of_another_owner_stays_for_the_reader(record: dict[str, Any]) -> None:
    content = RecordDict({"fedlora": ConfigRecord(record)})
    assert from_peer(content, known=pb.SiteDescription()) is content
    with pytest.raises(RunError):
        from_record(content, TrainReceipt)


def test_an_adapter_beside_a_message_without_one_is_ignored() -> None:
    content = to_record(Failure("internal"))
    content["adapter"] = to_record(RECEIPT)["adapter"]
    assert reply_from_record(content, TrainReceipt) == Failure("internal")


@pytest.mark.parametrize(
    "arrays",
    [
        ArrayRecord(),
        ArrayRecord({"q.lora_A.weight": Array("float32", (1,), "numpy.ndarray", b"\0\0\0\0")}),
        ArrayRecord({"adapter": Array("uint8", (1,), "numpy.ndarray", b"\x80")}),
    ],
    ids=["none", "by tensor", "pickled"],
)
def test_an_adapter_in_another_form_is_refused_unread(arrays: ArrayRecord) -> None:
    content = to_record(RECEIPT)
    content["adapter"] = arrays
    with pytest.raises(RunError, match="a peer sent an adapter that is not one array of the type"):
        from_record(content, TrainReceipt)
