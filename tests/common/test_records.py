"""Messages in Flower's records: there and back, and what is refused on the way."""

import json
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
from fedlora.common.records import from_record, reply_from_record, to_record

RECEIPT = TrainReceipt(
    "run", 1, 0, "größer/大", "ok", 10, 8, 0.5, None, Score(3, 0.1, 0.9), {"backward": 1.5}, b"tensors"
)
MESSAGES = [
    DescribeRequest(),
    SiteDescription("a", 5, 1, 0, "accuracy", ("x", "ü"), "base", "f" * 64, "d" * 64, "0.1.0", 8),
    InitialiseRequest(2**63),
    InitialiseReceipt(b"\0\1"),
    TrainRequest("run", 3, 1, 0, 10, 64, b"tensors"),
    RECEIPT,
    TrainReceipt("run", 1, 0, "a", "loss_not_finite", loss=float("inf")),
    EvaluateRequest("run", 0, None, 0, 2, True, b"tensors"),
    EvaluateReceipt("run", 0, 0, {"site": Score(1, float("nan"), 0.0)}, {4: 2, 0: 1}),
    Failure("internal", "line\nline"),
]


def changed(message: object, **fields: Any) -> RecordDict:
    """Return the records of `message` with other fields."""
    content = to_record(message)
    record = content.config_records["fedlora"]
    record["json"] = json.dumps(json.loads(str(record["json"])) | fields)
    return content


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: object) -> None:
    assert repr(from_record(to_record(message), type(message))) == repr(message)
    assert getattr(from_record(to_record(message), type(message)), "adapter", None) == getattr(message, "adapter", None)


def test_an_adapter_travels_as_one_array_and_not_in_the_text() -> None:
    content = to_record(RECEIPT)
    (array,) = content.array_records["adapter"].values()
    assert array.data == b"tensors"
    assert "tensors" not in str(content.config_records["fedlora"]["json"])


def test_a_failure_may_come_in_place_of_any_receipt() -> None:
    failure = Failure("data", "no such file")
    assert reply_from_record(to_record(failure), TrainReceipt) == failure
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
        RecordDict({"other": ConfigRecord({"type": "TrainReceipt", "json": "{}"})}),
    ],
)
def test_records_of_another_kind_are_refused(content: RecordDict) -> None:
    with pytest.raises(RunError, match=r"a peer sent .*; expected TrainReceipt"):
        from_record(content, TrainReceipt)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"num_examples": "many"}, "num_examples"),
        ({"num_examples": "NaN"}, "num_examples"),
        ({"num_examples": 1.5}, "num_examples"),
        ({"round": None}, "round"),
        ({"loss": "high"}, "loss"),
        ({"seconds": {"backward": "long"}}, "seconds.backward"),
        ({"after": {"num_examples": 1}}, "after.loss"),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(RunError, match=f"a peer sent an unreadable TrainReceipt: {place}: "):
        from_record(changed(RECEIPT, **fields), TrainReceipt)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ud800"])
def test_a_text_that_is_no_message_is_refused(text: str) -> None:
    content = RecordDict({"fedlora": ConfigRecord({"type": "TrainReceipt", "json": text})})
    with pytest.raises(RunError, match="a peer sent an unreadable TrainReceipt"):
        from_record(content, TrainReceipt)


def test_fields_that_nobody_here_knows_are_ignored() -> None:
    assert from_record(changed(RECEIPT, perplexity="low", mood=3), TrainReceipt) == RECEIPT


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
