"""Expressions are matched as `re` matches them, and none of them takes long."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.common.errors import AdapterError
from fedlora.common.patterns import matches, matches_end

few = settings(derandomize=True, database=None, deadline=None, max_examples=400)

atoms = st.sampled_from(
    [
        "a",
        "b",
        r"\.",
        ".",
        r"\d",
        r"\w",
        r"\S",
        "[ab]",
        "[^a]",
        "[a-b.]",
        "[]a]",
        r"[\d.]",
        "^",
        "$",
        "(?=a)",
        "(?!b)",
        "-",
    ]
)
signs = st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{1,}", "{,2}", "{0,3}"])


def _repeatable(atom: str, sign: str) -> str:
    return f"(?:{atom}){sign}"


expressions = st.recursive(
    st.builds(_repeatable, atoms, signs),
    lambda parts: st.one_of(
        st.lists(parts, max_size=4).map("".join),
        st.lists(parts, min_size=1, max_size=3).map("|".join).map("({})".format),
        parts.map("({})?".format),
    ),
    max_leaves=6,
)
texts = st.text("ab.1-\n", max_size=8)


@few
@given(expressions, texts)
def test_an_expression_matches_what_it_matches_for_re(expression: str, text: str) -> None:
    try:
        found, refused = matches(expression, text), ""
    except AdapterError as error:
        found, refused = False, str(error)
    assert "repeats within one another" in refused or found == (re.fullmatch(expression, text) is not None)


@few
@given(st.from_regex(r"\^?[a.1-]{1,5}", fullmatch=True), texts.filter(lambda text: "\n" not in text))
def test_a_plain_key_is_for_the_ends_that_peft_finds(key: str, path: str) -> None:
    assert matches_end(key, path) == (re.fullmatch(rf"(.*\.)?({key})", path) is not None)


@pytest.mark.parametrize(
    "expression",
    [
        r"(a+)+b", r"(a|a)*b", r"(.*.*)*x", r"(.*)*(.*)*(.*)*x", "a?" * 100 + "a" * 100, "(a|a)" * 100 + "b",
        r"((a?){100}){100}b", r"(?=(a+)+b)a*", ".*" * 500 + "x",
    ],
)  # fmt: skip
def test_no_expression_takes_long(expression: str) -> None:
    """`re` would be at most of these for longer than anybody lives; that this returns is what is tested."""
    assert not matches(expression, "a" * 99)


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("(a", "unbalanced"), ("a)", "unbalanced"), ("[a", "an end"), ("*", "nothing to repeat"),
        ("a**", "a repeat of"), (r"(a)\1", r"\\1"), ("(?<=a)b", "a kind"), ("(?i)a", "a kind"),
        ("a{999}", "a repeat of"),
        ("[b-a]", "range"), ("a*+", "a repeat of"), ("((((a*)*)*)*)", "repeats within"), ("(" * 99, "too deep"),
        ("a" * 10_001, "characters"),
    ],
)  # fmt: skip
def test_what_is_not_matched_is_refused_in_a_line(expression: str, what: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(what) if "\\" not in what else what):
        matches(expression, "a")
