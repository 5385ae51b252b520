"""What stands on the pages, README.md and those below deploy/: their commands, programs and files, piece by piece."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "deploy").rglob("*.md")])
_SHELLS = ("sh", "bash", "shell")
# A heading, a block between fences, or lines that are indented after an empty one.
_PART = re.compile(
    r"^#+ (?P<heading>[^\n]*)\n"
    r"|^ *```(?P<language>\w*)\n(?P<fenced>.*?)^ *```\n"
    r"|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Piece:
    """A command, or a block that is no list of commands.

    Attributes:
        page: its path below the root of the repository.
        heading: the heading that it stands under.
        kind: "command"; else the block's language: "sh" for a script, "python", "toml", "" for none.
        text: of a command one line: without prompt and comment, with what stood in further lines.
    """

    page: str
    heading: str
    kind: str
    text: str


def pieces(page: Path) -> list[Piece]:
    """Return the pieces of a page in their order; what a command printed is not among them."""
    name, heading, found = str(page.relative_to(ROOT)), "", list[Piece]()
    for part in _PART.finditer(page.read_text(encoding="utf-8") + "\n"):
        if part["heading"] is not None:
            heading = part["heading"]
        elif part["indented"] is not None:
            block = re.sub(r"^ {4}", "", part["indented"], flags=re.MULTILINE)
            found += [Piece(name, heading, kind, text) for kind, text in _in_indented(block)]
        elif part["language"] == "console":
            found += [Piece(name, heading, "command", text) for text in _commands(part["fenced"], r"\s*[$#] ")]
        else:
            kind = "sh" if part["language"] in _SHELLS else part["language"]
            found.append(Piece(name, heading, kind, part["fenced"]))
    return found


def piece_with(page: Path, kind: str, word: str) -> str:
    """Return the text of the one piece of a page that is of this kind and has this word."""
    (found,) = (piece.text for piece in pieces(page) if piece.kind == kind and word in piece.text)
    return found


def _in_indented(block: str) -> Iterator[tuple[str, str]]:
    if block.startswith("["):
        yield "toml", block
    else:
        yield from (("command", text) for text in _commands(block, ""))


def _commands(block: str, prompt: str) -> Iterator[str]:
    for line in re.sub(r" *\\\n\s*", " ", block).splitlines():
        if line.strip() and (prompted := re.match(prompt, line)):
            yield re.sub(r"\s+# .*", "", line[prompted.end() :]).strip()
