"""The expressions by which PEFT's configurations name layers, matched in a time that no expression can make long.

`re` tries one way through an expression after the other, and a few characters can make that last for ever; nobody's
expressions but our own are given to it. Here all ways are gone at once: what an expression can have read of a text is
a set of places, the bits of a number. What it means is the same. What cannot be matched so, such as a reference to a
group, is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from fedlora.common.errors import AdapterError

_MAX_CHARACTERS = 10_000
_MAX_DEPTH = 20
_MAX_REPEATS_WITHIN = 3
_MAX_TIMES = 100

_PLAIN = re.compile(r"\^?[\w.-]+")
_BRACES = re.compile(r"\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\?(?:(:)|P<[A-Za-z_]\w*>|([=!]))")

IsOne = Callable[[str], bool]


@dataclass(frozen=True)
class _Text:
    """A text, and by character the places behind it, as bits."""

    text: str
    behind: Mapping[str, int]

    def after(self, places: int, is_one: IsOne) -> int:
        """Return the places that one character further leads to, where the character is one of those."""
        behind = 0
        for character, found in self.behind.items():
            if is_one(character):
                behind |= found
        return (places << 1) & behind


Step = Callable[[_Text, int], int]


def matches(expression: str, text: str) -> bool:
    """Return whether an expression matches all of a text, as `re.fullmatch` would say.

    Raises:
        AdapterError: it is no regular expression, or one that is not matched here.
    """
    behind: dict[str, int] = {}
    for place, character in enumerate(text, 1):
        behind[character] = behind.get(character, 0) | 1 << place
    return bool(_compiled(expression)(_Text(text, behind), 1) >> len(text) & 1)


def require_pattern(expression: str) -> None:
    """Check that `matches` and `matches_end` can be asked about an expression.

    Raises:
        AdapterError: it is no regular expression, or one that is not matched here.
    """
    _compiled(rf"(.*\.)?({expression})")


def matches_end(expression: str, path: str) -> bool:
    """Return whether an expression matches the path or its end, from a dot on, as a key of PEFT's patterns does.

    Raises:
        AdapterError: as `matches`.
    """
    if not _PLAIN.fullmatch(expression):
        return matches(rf"(.*\.)?({expression})", path)
    is_whole = expression.startswith("^")
    name = expression[is_whole:]
    start = len(path) - len(name)
    if start < 0 or (start and (is_whole or path[start - 1] != ".")):
        return False
    return all(wanted in (found, ".") for wanted, found in zip(name, path[start:], strict=True))


@lru_cache(maxsize=512)
def _compiled(expression: str) -> Step:
    if len(expression) > _MAX_CHARACTERS:
        raise AdapterError(f"an expression of {len(expression):,} characters; expected at most {_MAX_CHARACTERS:,}")
    reader = _Reader(expression)
    step = reader.ways(0)[0]
    reader.require_end()
    return step


class _Reader:
    """Reads an expression from left to right. Each part comes with the number of repeats within one another."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._at = 0

    def require_end(self) -> None:
        if self._at < len(self._expression):
            raise self._wrong("an unbalanced parenthesis")

    def ways(self, depth: int) -> tuple[Step, int]:
        if depth > _MAX_DEPTH:
            raise self._wrong("groups too deep within groups")
        parts = [self._sequence(depth)]
        while self._takes("|"):
            parts.append(self._sequence(depth))
        steps = [step for step, _ in parts]
        return (steps[0] if len(steps) == 1 else _either(steps)), max(within for _, within in parts)

    def _sequence(self, depth: int) -> tuple[Step, int]:
        steps: list[Step] = []
        most = 0
        while self._at < len(self._expression) and self._expression[self._at] not in "|)":
            step, within = self._repeated(*self._one(depth))
            steps.append(step)
            most = max(most, within)
        return _one_by_one(steps), most

    def _repeated(self, step: Step, within: int) -> tuple[Step, int]:
        if (times := self._times()) is None:
            return step, within
        self._takes("?")  # Which way is tried first makes no difference.
        if self._takes("+") or self._times() is not None:
            raise self._wrong("a repeat of a repeat")
        if within == _MAX_REPEATS_WITHIN:
            raise self._wrong(f"more than {_MAX_REPEATS_WITHIN} repeats within one another")
        least, most = times
        return _repeat(step, least, most), within + 1

    def _times(self) -> tuple[int, int | None] | None:
        for sign, times in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._takes(sign):
                return times
        braces = _BRACES.match(self._expression, self._at)
        if braces is None or braces[0] in ("{}", "{,}"):
            return None
        self._at = braces.end()
        least = int(braces[1] or 0)
        most = least if not braces[2] else int(braces[3]) if braces[3] else None
        if max(least, most or 0) > _MAX_TIMES or (most is not None and most < least):
            raise self._wrong(f"a repeat of {braces[0]}")
        return least, most

    def _one(self, depth: int) -> tuple[Step, int]:
        character = self._next()
        match character:
            case "(":
                return self._group(depth)
            case "[":
                return _character(self._listed()), 0
            case "\\":
                return _character(self._escaped()), 0
            case ".":
                return _character(lambda found: found != "\n"), 0
            case "^":
                return lambda _text, places: places & 1, 0
            case "$":
                return lambda text, places: places & _ends(text.text), 0
            case "*" | "+" | "?":
                raise self._wrong("nothing to repeat")
        return _literal(character), 0

    def _group(self, depth: int) -> tuple[Step, int]:
        kind = _GROUP.match(self._expression, self._at)
        if kind is not None:
            self._at = kind.end()
        elif self._expression.startswith("?", self._at):
            raise self._wrong("a group of a kind that is not matched here")
        step, within = self.ways(depth + 1)
        if not self._takes(")"):
            raise self._wrong("an unbalanced parenthesis")
        if kind is not None and kind[2]:
            return _looking_ahead(step, is_wanted=kind[2] == "="), within + 1
        return step, within

    def _listed(self) -> IsOne:
        is_negated = self._takes("^")
        listed: list[IsOne] = []
        while not (listed and self._takes("]")):
            first = self._next()
            if first == "\\":
                known = self._escaped()
                listed.append(known)
                continue
            behind = self._expression[self._at : self._at + 2]
            if len(behind) == 2 and behind[0] == "-" and behind[1] not in "]\\":
                self._at += 2
                if behind[1] < first:
                    raise self._wrong(f"a range from {first!r} to {behind[1]!r}")
                listed.append(_between(first, behind[1]))
            else:
                listed.append(_between(first, first))
        return lambda found: is_negated != any(is_one(found) for is_one in listed)

    def _escaped(self) -> IsOne:
        character = self._next()
        kinds: dict[str, IsOne] = {"d": str.isdecimal, "s": str.isspace, "w": _is_of_a_word}
        if (kind := kinds.get(character.lower())) is not None:
            is_negated = character.isupper()
            return lambda found: kind(found) != is_negated
        if character.isalnum():
            raise self._wrong(f"\\{character}, which is not matched here")
        return _between(character, character)

    def _next(self) -> str:
        if self._at == len(self._expression):
            raise self._wrong("an end where more is expected")
        self._at += 1
        return self._expression[self._at - 1]

    def _takes(self, sign: str) -> bool:
        is_there = self._expression.startswith(sign, self._at)
        self._at += len(sign) * is_there
        return is_there

    def _wrong(self, what: str) -> AdapterError:
        return AdapterError(f"the expression {self._expression[:120]!r} has {what} (character {self._at})")


def _literal(character: str) -> Step:
    return lambda text, places: (places << 1) & text.behind.get(character, 0)


def _character(is_one: IsOne) -> Step:
    return lambda text, places: text.after(places, is_one) if places else 0


def _one_by_one(steps: list[Step]) -> Step:
    def walk(text: _Text, places: int) -> int:
        for step in steps:
            places = step(text, places)
        return places

    return walk


def _either(steps: list[Step]) -> Step:
    def walk(text: _Text, places: int) -> int:
        reached = 0
        for step in steps:
            reached |= step(text, places)
        return reached

    return walk


def _repeat(step: Step, least: int, most: int | None) -> Step:
    def walk(text: _Text, places: int) -> int:
        for _ in range(least):
            before, places = places, step(text, places)
            if places == before:
                break
        reached = places
        left = len(text.text) + 1 if most is None else most - least
        while places and left:
            places = step(text, places) & ~reached
            reached |= places
            left -= 1
        return reached

    return walk


def _looking_ahead(step: Step, *, is_wanted: bool) -> Step:
    def walk(text: _Text, places: int) -> int:
        each = (1 << place for place in range(places.bit_length()) if places >> place & 1)
        return sum(place for place in each if bool(step(text, place)) == is_wanted)

    return walk


def _ends(text: str) -> int:
    return 1 << len(text) | (1 << len(text) - 1 if text.endswith("\n") else 0)


def _between(first: str, last: str) -> IsOne:
    return lambda found: first <= found <= last


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or character == "_"
