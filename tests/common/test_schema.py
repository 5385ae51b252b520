"""The proto is the schema: dataclasses have its names and fields, come out as they went in, and keep what is local."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.common import messages
from fedlora.common.bounds import MAX_EXAMPLES, MAX_TOKENS, PHASES
from fedlora.common.fates import PARTS
from fedlora.common.messages import (
    EvaluateReceipt,
    Failure,
    Generated,
    InitialiseReceipt,
    Score,
    SiteDescription,
    TrainReceipt,
    TrainRequest,
)
from fedlora.common.schema import (
    PACKED,
    discard_local,
    from_proto,
    holds_words,
    inner_map,
    is_local,
    is_map,
    parse,
    serialised,
    to_proto,
)
from fedlora.v1 import messages_pb2 as pb

many = settings(derandomize=True, database=None, deadline=None, max_examples=40)

# What names an adapter's file in the messages around these.
OF_ADAPTERS = {"Blob", "OfferedAdapter", "SentAdapter"}
DATACLASSES: dict[str, Any] = {
    name: kind
    for name, kind in inspect.getmembers(messages, dataclasses.is_dataclass)
    if kind.__module__ == messages.__name__
}
INTEGERS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
SCALARS = dict.fromkeys(INTEGERS, int) | {
    FieldDescriptor.TYPE_STRING: str,
    FieldDescriptor.TYPE_DOUBLE: float,
    FieldDescriptor.TYPE_BOOL: bool,
    FieldDescriptor.TYPE_BYTES: bytes,
}


# -- a dataclass against its message


def plain(hint: Any) -> Any:
    """Return a field's type without its bounds, a choice of words as words."""
    if get_origin(hint) is Annotated:
        return plain(get_args(hint)[0])
    return str if get_origin(hint) is Literal else hint


def misfits(kind: type, message: Any) -> Iterator[str]:
    """Yield what of a dataclass and its message has no counterpart of the fitting kind on the other side."""
    hints = {field.name: get_type_hints(kind)[field.name] for field in dataclasses.fields(kind)}
    for name in PACKED:
        hints.pop(name, None)
    by_name = message.fields_by_name
    yield from (f"{kind.__name__}.{name}: only in the proto" for name in by_name if name not in hints)
    for name, hint in hints.items():
        if name not in by_name:
            yield f"{kind.__name__}.{name}: not in the proto"
        elif not fits(plain(hint), by_name[name]):
            yield f"{kind.__name__}.{name}: {hint} is another kind than the proto's"


def fits(hint: Any, field: FieldDescriptor) -> bool:
    """Return whether values of a type are what the mapping writes to a field and reads from it."""
    if is_map(field):
        key, value = field.message_type.fields
        if get_origin(hint) is not Mapping:
            return False
        key_hint, value_hint = map(plain, get_args(hint))
        if value.message_type is not None and (inner := inner_map(value.message_type)):
            return fits_one(key_hint, key) and fits(value_hint, value.message_type.fields_by_name[inner])
        return fits_one(key_hint, key) and fits_one(value_hint, value)
    if field.is_repeated:
        return get_origin(hint) is tuple and field.message_type is None and fits_one(plain(get_args(hint)[0]), field)
    if get_origin(hint) in (types.UnionType, typing.Union):
        (inside,) = (plain(part) for part in get_args(hint) if part is not type(None))
        return field.has_presence and fits_one(inside, field)
    return (field.message_type is not None or not field.has_presence) and fits_one(hint, field)


def fits_one(hint: Any, field: FieldDescriptor) -> bool:
    if field.message_type is not None:
        return bool(DATACLASSES.get(field.message_type.name) is hint)
    return SCALARS.get(field.type) is hint


def test_every_dataclass_has_its_message_and_the_other_way_round() -> None:
    in_maps = {name for name, kind in pb.DESCRIPTOR.message_types_by_name.items() if inner_map(kind)}
    assert DATACLASSES.keys() == set(pb.DESCRIPTOR.message_types_by_name) - OF_ADAPTERS - in_maps
    assert len(DATACLASSES) == 15


@pytest.mark.parametrize("kind", DATACLASSES.values())
def test_every_field_has_one_of_the_fitting_kind_on_the_other_side(kind: type) -> None:
    assert list(misfits(kind, pb.DESCRIPTOR.message_types_by_name[kind.__name__])) == []


def names(found: Iterator[str]) -> list[str]:
    return [line.partition(":")[0].partition(".")[2] for line in found]


def test_a_field_that_is_missing_or_of_another_kind_is_seen() -> None:
    fields = [
        ("num_examples", int), ("exact_match", str), ("rouge_l", float | None), ("mood", tuple[str, ...]),
    ]  # fmt: skip
    other = dataclasses.make_dataclass("Generated", fields)
    assert names(misfits(other, pb.Generated.DESCRIPTOR)) == ["exact_match", "rouge_l", "mood"]
    del fields[0]
    assert "Generated.num_examples: only in the proto" in misfits(
        dataclasses.make_dataclass("Generated", fields), pb.Generated.DESCRIPTOR
    )
    maps = [("groups", Mapping[str, Generated]), ("predictions", Mapping[int, str]), ("answers", dict[int, str])]
    found = names(misfits(dataclasses.make_dataclass("EvaluateReceipt", maps), pb.EvaluateReceipt.DESCRIPTOR))
    assert found[-3:] == [name for name, _ in maps]


# -- there and back

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
shown = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=40)
codes = st.from_regex("[a-z_]{1,40}", fullmatch=True)
examples = st.integers(0, MAX_EXAMPLES)
numbers = st.floats(-1e30, 1e30) | st.sampled_from([math.nan, math.inf, -math.inf])
parts = st.floats(0, 1)
# What no peer may send is not drawn.
BOUNDED: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("Score", "num_examples"): st.integers(1, MAX_EXAMPLES),
    ("Score", "num_tokens"): st.integers(0, MAX_TOKENS),
    ("Score", "loss"): numbers,
    ("Score", "metric"): numbers,
    ("Generated", "num_examples"): st.integers(1, MAX_EXAMPLES),
    ("Generated", "exact_match"): parts,
    ("Generated", "rouge_l"): parts,
    ("SiteDescription", "num_examples"): examples,
    ("SiteDescription", "num_validation"): examples,
    ("SiteDescription", "num_held_out"): examples,
    ("SiteDescription", "lora_rank"): st.integers(1, 2**32 - 1),
    **{
        ("SiteDescription", name): shown
        for name in ("metric_name", "base_model_fingerprint", "data_fingerprint", "version")
    },
    ("SiteDescription", "fingerprints"): st.dictionaries(shown, shown, max_size=4),
    ("TrainReceipt", "status"): shown,
    ("TrainReceipt", "num_examples"): examples,
    ("TrainReceipt", "num_steps"): examples,
    ("TrainReceipt", "num_tokens"): st.integers(0, MAX_TOKENS),
    ("TrainReceipt", "micro_batch_size"): examples,
    ("TrainReceipt", "loss"): numbers,
    ("TrainReceipt", "seconds"): st.dictionaries(st.sampled_from(PHASES), st.floats(0, 1e9), max_size=5),
    ("TrainReceipt", "withheld"): st.sampled_from([(), ("loss",), ("scores",), ("loss", "scores")]),
    ("SiteDescription", "fates"): st.dictionaries(
        st.sampled_from(PARTS),
        st.dictionaries(codes, examples, max_size=3),
    ),
    ("TrainRequest", "run"): st.from_regex("[A-Za-z0-9_-]{1,64}", fullmatch=True),
    ("TrainRequest", "round"): st.integers(1, 2**32 - 1),
    ("TrainRequest", "num_rounds"): st.integers(1, 2**32 - 1),
    ("TrainRequest", "trains"): st.sampled_from([("A",), ("B",), ("A", "B")]),
    ("EvaluateRequest", "run"): st.from_regex("[A-Za-z0-9_-]{1,64}", fullmatch=True),
    ("EvaluateRequest", "shard"): st.integers(0, 2**16),
    ("EvaluateRequest", "num_shards"): st.integers(2**16 + 1, 2**32 - 1),
    ("Failure", "code"): codes,
    ("SumTerms", "most_examples"): examples,
    ("SumTerms", "most_change"): numbers,
    ("SumTerms", "clips"): st.lists(numbers, max_size=3).map(tuple),
    ("SumRequest", "run"): st.from_regex("[A-Za-z0-9_-]{1,64}", fullmatch=True),
    ("SumRequest", "step"): st.sampled_from(["seal", "mask", "consent", "reveal"]),
    ("SumReceipt", "step"): shown,
    ("SumReceipt", "num_clipped"): examples,
}


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return what can stand in a field, drawn by the proto alone."""
    if is_map(field):
        key, value = field.message_type.fields
        return st.dictionaries(values(key), values(value), max_size=4)
    if field.is_repeated:
        return st.lists(scalars(field), max_size=3).map(tuple)
    found = scalars(field) if field.message_type is None else anything(DATACLASSES[field.message_type.name])
    return st.none() | found if field.has_presence and field.containing_type.name in DATACLASSES else found


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.type in INTEGERS:
        return st.integers(*INTEGERS[field.type])
    kinds = {str: words, float: st.floats(), bool: st.booleans(), bytes: st.binary(max_size=40)}
    return kinds[SCALARS[field.type]]


def anything(kind: type) -> st.SearchStrategy[Any]:
    name = kind.__name__
    fields = pb.DESCRIPTOR.message_types_by_name[name].fields
    bounded = {field: strategy for (of, field), strategy in BOUNDED.items() if of == name}
    drawn = {field.name: values(field) for field in fields if field.name not in bounded}
    return st.builds(kind, **bounded, **drawn)


def in_order(value: Any) -> Any:
    """Return a value as text in which maps have one order, and nan is nan."""
    if isinstance(value, Mapping):
        return sorted((repr(key), in_order(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return [(field.name, in_order(getattr(value, field.name))) for field in dataclasses.fields(value)]
    return repr(value)


@pytest.mark.parametrize("kind", DATACLASSES.values())
def test_a_message_comes_out_of_its_bytes_as_it_went_in(kind: type) -> None:
    @many
    @given(anything(kind))
    def there_and_back(value: Any) -> None:
        raw = serialised(to_proto(value, with_local=True))
        assert in_order(from_proto(parse(raw, kind.__name__), kind, with_local=True)) == in_order(value)
        assert serialised(parse(raw, kind.__name__)) == raw

    there_and_back()


@pytest.mark.parametrize("kind", DATACLASSES.values())
def test_nothing_local_is_written_for_a_peer_or_read_from_one(kind: type) -> None:
    local = [field.name for field in pb.DESCRIPTOR.message_types_by_name[kind.__name__].fields if is_local(field)]

    @many
    @given(anything(kind))
    def for_a_peer(value: Any) -> None:
        whole, sent = to_proto(value, with_local=True), to_proto(value)
        assert not {field.name for field, _ in sent.ListFields()} & set(local)
        known = {"labels": (), "base_model": ""} if kind is SiteDescription else {}
        assert in_order(from_proto(whole, kind, known=known)) == in_order(from_proto(sent, kind, known=known))
        discard_local(whole)
        assert whole == sent

    for_a_peer()


def test_the_same_content_has_the_same_bytes_whatever_order_its_maps_have() -> None:
    scores = {str(number): Score(number + 1, 0.5, 1.0) for number in range(20)}
    backwards = dict(reversed(scores.items()))
    one, other = (EvaluateReceipt("run", 1, 0, groups, dict.fromkeys(range(9), 1)) for groups in (scores, backwards))
    assert serialised(to_proto(one)) == serialised(to_proto(other))


def test_numbers_at_their_ends_survive() -> None:
    score = Score(MAX_EXAMPLES, -math.inf, math.nan, MAX_TOKENS)
    receipt = TrainReceipt(
        "run", 2**32 - 1, 0, "a", "ok", MAX_EXAMPLES, loss=math.inf, before=score, seconds={"training": -0.0}
    )
    found = from_proto(to_proto(receipt), TrainReceipt)
    assert repr(found) == repr(receipt)


def test_nothing_is_another_thing_than_zero() -> None:
    empty = EvaluateReceipt("run", 1, 0, {"site": Score(1, 0.0, 0.0)})
    assert from_proto(to_proto(empty), EvaluateReceipt).groups == empty.groups
    fates: dict[str, dict[str, int]] = {"training": {}, "test": {"cut": 0}}
    described = SiteDescription("a", 1, 0, 0, "m", (), "b", "f", "d", "1", 1, fates=fates)
    assert from_proto(to_proto(described, with_local=True), SiteDescription, with_local=True) == described


def test_a_name_that_is_no_text_is_written_with_question_marks() -> None:
    failure = Failure("data", "patients-\udcff.csv")
    assert from_proto(to_proto(failure, with_local=True), Failure, with_local=True).text == "patients-?.csv"


def test_an_adapter_is_never_in_the_protobuf() -> None:
    for message in (TrainRequest("run", 1, 0, 0, 1, 0, b"tensors"), InitialiseReceipt(b"tensors")):
        assert b"tensors" not in serialised(to_proto(message, with_local=True))


# -- what is local


def test_every_field_that_holds_words_says_whether_it_is_local() -> None:
    silent = [
        field.full_name
        for kind in pb.DESCRIPTOR.message_types_by_name.values()
        for field in kind.fields
        if holds_words(field) and not field.GetOptions().HasExtension(typing.cast(Any, pb.local))
    ]
    assert silent == []


def test_what_no_peer_hears_is_local() -> None:
    local = {
        field.full_name.removeprefix("fedlora.v1.")
        for kind in pb.DESCRIPTOR.message_types_by_name.values()
        for field in kind.fields
        if is_local(field)
    }
    assert local == {
        "SiteDescription.labels", "SiteDescription.base_model", "SiteDescription.notes",
        "SiteDescription.adapter_bytes", "SiteDescription.adapted_bytes", "SiteDescription.step_examples",
        "TrainReceipt.wire_bytes", "TrainReceipt.wire_sha256", "EvaluateReceipt.answers", "Failure.text",
    }  # fmt: skip


def test_words_that_say_nothing_of_it_stay() -> None:
    from fedlora.v1 import enrolment_pb2, registry_pb2

    for field in (
        registry_pb2.PublishedAdapter.DESCRIPTOR.fields_by_name["base_model"],
        enrolment_pb2.EnrolResponse.DESCRIPTOR.fields_by_name["site"],
    ):
        assert is_local(field)
    assert not is_local(registry_pb2.PublishedAdapter.DESCRIPTOR.fields_by_name["round"])
