"""What becomes of examples that a task cannot take as they are: short codes, and the words for them."""

import re
from collections.abc import Mapping

from fedlora.common.errors import CODE

TOO_LONG = "too_long"
ANSWER_CUT_OFF = "answer_cut_off"
NO_ANSWER = "no_answer"
CUT = "cut"
UNUSABLE = "unusable"

# By part of the data, training, validation or test, and by code: how many examples.
Fates = Mapping[str, Mapping[str, int]]

PARTS = ("training", "validation", "test")
_WORDS = {
    TOO_LONG: "longer than task.max_length",
    ANSWER_CUT_OFF: "no answer within task.max_length",
    NO_ANSWER: "nothing to learn in them",
    UNUSABLE: "the task cannot use them",
}


def checked(fates: Mapping[str, int], *, num_left_out: int) -> dict[str, int]:
    """Return a task's fates, with all that it has left out: what has no code that can be sent counts as unusable."""
    known = {code: number for code, number in fates.items() if number > 0 and re.fullmatch(CODE, code)}
    unknown = num_left_out - sum(number for code, number in known.items() if code != CUT)
    return known | ({UNUSABLE: unknown + known.get(UNUSABLE, 0)} if unknown > 0 else {})


def words_of(code: str) -> str:
    """Return why examples are left out, in words; a code that is unknown here speaks for itself."""
    return _WORDS.get(code, code.replace("_", " "))


def num_left_out(fates: Mapping[str, int]) -> int:
    """Return how many examples of a part are left out; those that are cut are not."""
    return sum(number for code, number in fates.items() if code != CUT)


def fate_line(part: str, fates: Mapping[str, int], *, num_used: int) -> str:
    """Return in words what becomes of the examples of a part, of which so many are used; nothing if all as they are."""
    left_out, cut = num_left_out(fates), fates.get(CUT, 0)
    given = num_used + left_out
    noun = f"{part} example{'' if given == 1 else 's'}"
    parts = []
    if left_out:
        share = f"all {given:,}" if num_used == 0 else f"{left_out:,} of {given:,}"
        parts.append(f"{share} {noun} {'is' if left_out == 1 else 'are'} left out ({reasons(fates)})")
    if cut:
        of_them = "" if left_out else f" of {given:,} {noun}"
        parts.append(f"{cut:,}{of_them} {'is' if cut == 1 else 'are'} cut at task.max_length")
    return ", ".join(parts)


def reasons(fates: Mapping[str, int]) -> str:
    """Return why examples of a part are left out, in words, with numbers where there are several reasons."""
    found = {code: number for code, number in sorted(fates.items()) if code != CUT and number}
    if len(found) == 1:
        return words_of(next(iter(found)))
    return ", ".join(f"{number:,} {words_of(code)}" for code, number in found.items())
