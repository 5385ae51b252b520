"""One spelling for what reads the same, and what only looks it."""

import pytest

from fedlora.common.spelling import checked_names, near_twins, nearest_twin, spelled, twins_in_words, visible


@pytest.mark.parametrize("word", ["O\u0308dem", " Ödem\u00a0", "Ödem\n", "O\u0308dem\t"])
def test_a_word_has_one_spelling_whatever_wrote_it(word: str) -> None:
    assert spelled(word) == "Ödem"


@pytest.mark.parametrize(
    "twins",
    [
        ("TRUE", "True", "true"),
        ("1", "1.0"),
        ("01", "1", "1.00"),
        ("-2", "-2.0"),
        ("cat", "cat\u200b"),
        ("cat", "\ufeffcat"),
        ("❤", "❤\ufe0f"),
        ("a b", "a  b", "a\u00a0b"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("x-1", "x\u20131"),
        ("cat", "\uff43\uff41\uff54"),
    ],
)
def test_what_a_reader_takes_for_the_same_is_found(twins: tuple[str, ...]) -> None:
    assert near_twins(["other", *twins, "dog"]) == [tuple(sorted(twins))]
    assert nearest_twin(twins[0], ["other", twins[1]]) == twins[1]


def test_what_differs_is_no_twin() -> None:
    words = ["1", "-1", "10", "1.01", "true", "yes", "a b", "ab", "é", "e", "1" * 40, "1" * 39 + "2", "", "nan"]
    assert near_twins(words) == []
    assert nearest_twin("2", words) is None


def test_what_cannot_be_seen_is_shown_by_its_number() -> None:
    assert visible("cat\u200b") == r"'cat\u200b'"
    assert visible("❤\ufe0f") == r"'❤\ufe0f'"
    assert visible("a\nb\ud800 Ödem") == r"'a\nb\ud800 Ödem'"
    assert visible("x" * 61) == f"'{'x' * 60}...'"


def test_of_many_twins_the_first_are_told() -> None:
    assert twins_in_words(["a", "b"]) == ""
    words = [f"{sign}{number}" for number in range(11) for sign in "xX"]
    assert twins_in_words(words).startswith("'X0' and 'x0'; ")
    assert twins_in_words(words).endswith("; 'X7' and 'x7'; and 3 more")


def test_names_are_unique_in_one_spelling() -> None:
    assert checked_names(["b ", "O\u0308"]) == ("b", "Ö")
    for names, message in [
        (["a", "a"], r"has 'a' twice; expected it once"),
        (["Ö", "b", "O\u0308"], r"has 'Ö' twice, in two spellings"),
        (["cat", "cat "], r"has 'cat' twice, in two spellings"),
        (["a", " "], "has an empty name"),
        (["a", "b\ud800"], r"has 'b\\ud800' with half a surrogate pair"),
        (["a", "b\0"], r"has 'b\\x00' with a NUL character"),
    ]:
        with pytest.raises(ValueError, match=message):
            checked_names(names)
