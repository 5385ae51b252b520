"""How labels and the names of groups and clients are spelled: one way for what reads the same, and what only looks it.

A file system or a keyboard decides whether an "Ö" is one character or two, and nobody sees a blank at the end. What
differs in more than that, if only in capitals, may be meant: it is kept apart and pointed out.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Beside the format characters (Cf): they join letters or choose a glyph, and have none of their own.
_WITHOUT_GLYPH = frozenset(map(chr, (0x034F, 0x115F, 0x1160, 0x3164, *range(0xFE00, 0xFE10), *range(0x180B, 0x180E))))
_LONGEST, _MOST_SHOWN = 60, 8


def spelled(word: str) -> str:
    """Return a word in Unicode's composed form (NFC), without white space around it."""
    return (word if word.isascii() else unicodedata.normalize("NFC", word)).strip()


def what_is_no_text(text: str) -> str | None:
    """Return in words what no text has and this one does; None for a text."""
    if not text.isascii() and _SURROGATE.search(text):
        return "half a surrogate pair, which is no character"
    return "a NUL character" if "\0" in text else None


def visible(word: str) -> str:
    """Return a word in quotes, cut where it is long, with what cannot be seen in it as its number."""
    signs = (
        sign if sign == " " or (sign.isprintable() and not _has_no_glyph(sign)) else ascii(sign)[1:-1]
        for sign in word[:_LONGEST]
    )
    return f"'{''.join(signs)}{'...' if len(word) > _LONGEST else ''}'"


def near_twins(words: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the words that look alike or mean the same to a reader, such as True and TRUE, or 1 and 1.0, together."""
    alike: dict[str, list[str]] = {}
    for word in dict.fromkeys(words):
        alike.setdefault(_as_read(word), []).append(word)
    return [tuple(sorted(twins)) for twins in alike.values() if len(twins) > 1]


def twins_in_words(words: Iterable[str]) -> str:
    """Return the words that look alike, for a warning; "" where all differ."""
    alike = [" and ".join(map(visible, twins)) for twins in near_twins(words)]
    more = f"; and {len(alike) - _MOST_SHOWN} more" if len(alike) > _MOST_SHOWN else ""
    return "; ".join(alike[:_MOST_SHOWN]) + more


def nearest_twin(word: str, others: Iterable[str]) -> str | None:
    """Return the first of other words that looks like this one."""
    read = _as_read(word)
    return next((other for other in others if _as_read(other) == read), None)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return labels, or the names of clients, as they are spelled, in their order.

    Raises:
        ValueError: one is empty or no text, or two read the same; the message lacks whose they are.
    """
    words: dict[str, str] = {}
    for name in names:
        if (word := spelled(name)) == "":
            raise ValueError("has an empty name; expected text")
        if (fault := what_is_no_text(word)) is not None:
            raise ValueError(f"has {visible(word)} with {fault}; remove it")
        if word in words:
            how = "" if words[word] == name else ", in two spellings"
            raise ValueError(f"has {visible(word)} twice{how}; expected it once")
        words[word] = name
    return tuple(words)


def _as_read(word: str) -> str:
    """Return what of a word a reader goes by: not its capitals, its invisible signs, or how wide a blank is."""
    if not word.isascii():
        shown = "".join(sign for sign in unicodedata.normalize("NFKC", word) if not _has_no_glyph(sign))
        word = "".join("-" if unicodedata.category(sign) == "Pd" else sign for sign in shown)
        word = unicodedata.normalize("NFKC", word.casefold())
    read = " ".join(word.casefold().split())
    if number := _NUMBER.fullmatch(read):
        sign, whole, part = number.groups()
        return f"{sign.replace('+', '')}{whole}{f'.{part}' if part else ''}"
    return read


def _has_no_glyph(sign: str) -> bool:
    return not sign.isascii() and (sign in _WITHOUT_GLYPH or unicodedata.category(sign) == "Cf")
