"""Standard output and error, as all commands write to them: on any terminal, and for whoever stops reading early."""

import codecs
import io
import os
import re
import sys

_UNENCODABLE = "fedlora-alike"
# What our own views have beyond ASCII, as far as rich does not replace it by itself.
_ALIKE = {"\u2192": "->", "\u2190": "<-", "\u2026": "...", "\u00d7": "x", "\u00b1": "+-", "\u2212": "-", "\u2013": "-"}
_ALIKE |= {"\u2265": ">=", "\u2264": "<=", "\u2248": "~", "\u00b7": ".", "\u2022": "*", "\u2500": "-", "\u2502": "|"}


def prepare_outlets() -> None:
    """Let no character that a terminal lacks, and no reader that goes away, end the command.

    A character that the output's encoding lacks is written as one that looks alike, or by its number: the name stays
    known. Once nobody reads any more (`fedlora ... | head`), the command goes on to its end and writes nowhere.
    """
    codecs.register_error(_UNENCODABLE, _alike)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # Somebody has put a stream of his own there, and reads it.
        if stream is None:
            _lead_nowhere(number)
        else:
            stream.flush()
        raw = io.BufferedWriter(_Outlet(number, "w", closefd=False))
        is_prompt = number == 2 or raw.isatty()
        encoding = "utf-8" if stream is None else stream.encoding
        setattr(sys, name, io.TextIOWrapper(raw, encoding, _UNENCODABLE, line_buffering=is_prompt))


def toml_for(text: str, encoding: str) -> str:
    """Return a TOML text for an output of this encoding: elsewhere than in UTF-8, strings have escapes beyond ASCII.

    A file in another encoding would not be TOML.
    """
    if codecs.lookup(encoding).name == "utf-8":
        return text
    return re.sub(r"[^\x00-\x7f]", lambda found: _escaped(found.group()), text)


class _Outlet(io.FileIO):
    """A file descriptor that leads nowhere once its reader is gone."""

    def write(self, content: object) -> int:
        try:
            return super().write(content)  # type: ignore[arg-type]
        except BrokenPipeError:
            _lead_nowhere(self.fileno())
            return super().write(content)  # type: ignore[arg-type]


def _lead_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _alike(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_ALIKE.get(character) or _escaped(character) for character in characters), error.end


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
