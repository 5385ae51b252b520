"""One dataclass, one line of JSON."""

import json
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.common.codec import Codec

few = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@dataclass(frozen=True)
class Part:
    value: float
    place: int | None = None


@dataclass(frozen=True)
class Whole:
    name: str
    parts: dict[str, Part] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    maybe: Part | None = None


CODEC = Codec(Whole)
parts = st.builds(Part, st.floats(), st.none() | st.integers(-(2**63), 2**63))
wholes = st.builds(
    Whole, st.text(), st.dictionaries(st.text(), parts, max_size=3), st.lists(st.floats()).map(tuple), st.none() | parts
)


def refuse_constant(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


@few
@given(wholes)
def test_what_is_written_is_one_line_of_plain_json_and_read_back_as_it_was(whole: Whole) -> None:
    line = CODEC.dump(whole)
    assert "\n" not in line
    json.loads(line, parse_constant=refuse_constant)
    assert repr(CODEC.load(line)) == repr(whole)  # nan equals nothing, but looks the same


def test_nan_and_infinities_are_strings_in_the_file_and_numbers_again_when_read() -> None:
    line = CODEC.dump(Whole("x", values=(math.nan, math.inf, -math.inf)))
    assert json.loads(line)["values"] == ["NaN", "Infinity", "-Infinity"]
    assert [str(value) for value in CODEC.load(line).values] == ["nan", "inf", "-inf"]


def test_a_text_that_reads_nan_stays_a_text() -> None:
    assert CODEC.load(CODEC.dump(Whole("NaN"))).name == "NaN"


def test_letters_of_all_scripts_are_written_as_they_are() -> None:
    assert "größer 大" in CODEC.dump(Whole("größer 大"))


def test_fields_can_be_left_out() -> None:
    assert json.loads(CODEC.dump(Whole("x"), leave_out={"parts", "maybe"})) == {"name": "x", "values": []}


def test_a_line_cut_anywhere_is_refused() -> None:
    line = CODEC.dump(Whole("é", {"a": Part(1.5, 2)}, (1.0,), Part(0.0))).encode()
    for length in range(len(line)):
        with pytest.raises(ValueError, match="Whole"):
            CODEC.load(line[:length])


@pytest.mark.parametrize("line", ["null", "[]", "{}", '{"name": 5}', '{"name": "x", "parts": {"a": {"value": "x"}}}'])
def test_another_kind_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="Whole"):
        CODEC.load(line)
