"""Where a chat template puts the words of each message: rendered once more with marks about them, and the marks read.

The marks are private characters of Unicode that the chat has none of. A template may look for a text in the words, such
as `</think>`; what it may look for stays whole, and the marks hug what stands between, within its white space. Whether
the template took the marked words as it takes the true ones shows when the marks are taken out again.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
Message = Mapping[str, object]

_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
# A template compares these, and they are no words of the data.
_COMPARED = frozenset({"role", "type", "name", "id", "tool_call_id"})

_QUOTED = r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_METHODS = r"split|rsplit|partition|rpartition|startswith|endswith|find|rfind|index|count|replace|strip|lstrip|rstrip"
_SOUGHT = (
    re.compile(rf"\.(?:{_METHODS}|removeprefix|removesuffix)\(\s*{_QUOTED}"),
    re.compile(rf"[=!]=\s*{_QUOTED}"),
    re.compile(rf"{_QUOTED}\s+(?:not\s+)?in\s"),
    re.compile(rf"\bset\s+\w+\s*=\s*{_QUOTED}"),
)


@dataclass(frozen=True)
class Marked:
    """Messages with marks about their words.

    Attributes:
        messages: these.
        pieces: by message, the words between two marks each.
        rests: by message, what stands behind its last piece in its content.
        openers, closers: the mark before and the mark behind the words of each message.
    """

    messages: list[Message]
    pieces: list[list[str]]
    rests: list[str]
    openers: str
    closers: str


@dataclass(frozen=True)
class Located:
    """A rendered text, without marks.

    Attributes:
        text: it.
        spans: by message, the spans of its pieces in the text, in their order there.
        pieces, rests: of the messages, as `Marked` has them.
    """

    text: str
    spans: list[list[Span]]
    pieces: list[list[str]]
    rests: list[str]

    def end_before(self, place: int) -> int:
        """Return where the words end that the messages before `place` end with; 0 where they have none."""
        return next((self.behind(other) for other in reversed(range(place)) if self.spans[other]), 0)

    def behind(self, place: int, *, with_space: bool = True) -> int:
        """Return where the words of the message at `place` end, with what stands behind its last piece in it."""
        end, rest = self.spans[place][-1][1], self.rests[place]
        for tail in (rest if with_space else "", rest.rstrip()):
            if tail and self.text.startswith(tail, end):
                return end + len(tail)
        return end


def sought_in(template: str) -> tuple[str, ...]:
    """Return the texts that a chat template may look for in a message's words, the longest first.

    They are the constants that it compares, gives to a text's methods, or names. Single words are none of them: in a
    template they are roles and keys.
    """
    found = {match[1][1:-1] for pattern in _SOUGHT for match in pattern.finditer(template)}
    marks = {text for text in (_unescaped(text) for text in found) if text.strip() and not text.isalnum()}
    return tuple(sorted(marks, key=lambda text: (-len(text), text)))


def marked(messages: Sequence[Message], sought: Sequence[str]) -> Marked | None:
    """Return the messages with marks about their words; None where Unicode has too few private characters for it."""
    used = frozenset("".join(text for message in messages for text in _texts(message)))
    free = (chr(code) for codes in _PRIVATE for code in codes if chr(code) not in used)
    try:
        marks = [(next(free), next(free)) for _ in messages]
    except StopIteration:
        return None
    pattern = re.compile("(" + "|".join(map(re.escape, sought)) + ")") if sought else None
    pieces: list[list[str]] = [[] for _ in messages]
    made = [
        _with_marks(message, around, pattern, found)
        for message, around, found in zip(messages, marks, pieces, strict=True)
    ]
    rests = [_rest(message, found) for message, found in zip(messages, pieces, strict=True)]
    return Marked(made, pieces, rests, "".join(opener for opener, _ in marks), "".join(closer for _, closer in marks))


def located(rendered: str, by: Marked) -> Located | None:
    """Return where the words are in a text rendered of marked messages; None where it cut words in two."""
    openers = {mark: place for place, mark in enumerate(by.openers)}
    closers = {mark: place for place, mark in enumerate(by.closers)}
    spans: list[list[Span]] = [[] for _ in by.messages]
    began: dict[int, int] = {}
    parts: list[str] = []
    length = 0
    marks = by.openers + by.closers
    # As a range, which is found faster than so many characters.
    for part in re.split(f"([{min(marks)}-{max(marks)}])", rendered) if marks else [rendered]:
        if (place := openers.get(part)) is not None:
            if place in began:
                return None
            began[place] = length
        elif (place := closers.get(part)) is not None:
            if place not in began:
                return None
            spans[place].append((began.pop(place), length))
        else:
            parts.append(part)
            length += len(part)
    return None if began else Located("".join(parts), spans, by.pieces, by.rests)


def _unescaped(quoted: str) -> str:
    return (
        quoted.replace(r"\n", "\n").replace(r"\t", "\t").replace(r"\"", '"').replace(r"\'", "'").replace("\\\\", "\\")
    )


def _texts(given: object) -> Iterator[str]:
    """Yield every text in a message, however deep."""
    if isinstance(given, str):
        yield given
    elif isinstance(given, Mapping):
        for value in given.values():
            yield from _texts(value)
    elif isinstance(given, Sequence):
        for value in given:
            yield from _texts(value)


def _with_marks(given: Message, marks: tuple[str, str], sought: re.Pattern[str] | None, pieces: list[str]) -> Message:
    """Return a message with marks, and add the words between them to `pieces`."""

    def inside(value: object) -> object:
        if isinstance(value, str):
            return "".join(map(about, sought.split(value) if sought else [value]))
        if isinstance(value, Mapping):
            return {key: entry if key in _COMPARED else inside(entry) for key, entry in value.items()}
        return [inside(entry) for entry in value] if isinstance(value, Sequence) else value

    def about(part: str) -> str:
        words = part.strip()
        if not words or (sought and sought.fullmatch(part)):
            return part
        pieces.append(words)
        before, _, behind = part.partition(words)
        return f"{before}{marks[0]}{words}{marks[1]}{behind}"

    return {key: value if key in _COMPARED else inside(value) for key, value in given.items()}


def _rest(message: Message, pieces: Sequence[str]) -> str:
    content = message.get("content")
    return content[content.rfind(pieces[-1]) + len(pieces[-1]) :] if isinstance(content, str) and pieces else ""
