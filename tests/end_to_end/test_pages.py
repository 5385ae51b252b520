"""The pages by use: every command that stands on one is typed in its order, or it is said why it is not."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from guide_pages import PAGES, ROOT, Piece, pieces
from page_reader import Reader
from page_walks import NOT_TYPED, OTHER_WALKS, QUICK, SLOW, Walk
from programs import program

from fedlora.client.site.site_file import load_site
from fedlora.common.run_file import load_run

RESULTS = "deploy/runs/compare/results/"
# Of files that others read: the package's entry points, Flower's project and configuration.
NOT_OURS = ("[project", "[superlink.")
TOML = [
    piece for page in PAGES for piece in pieces(page) if piece.kind == "toml" and not piece.text.startswith(NOT_OURS)
]
TYPED = [
    piece
    for page in PAGES
    for piece in pieces(page)
    if piece.kind in ("command", "python") and not piece.page.startswith((*OTHER_WALKS, RESULTS))
]


@pytest.fixture(scope="session")
def given(
    tiny_vision_model: Path, tiny_language_model: Path, tiny_digits: Path, tiny_chats: Path
) -> Mapping[str, Path]:
    """Return tiny models and data by the names of their fixtures."""
    return {
        "tiny_vision_model": tiny_vision_model,
        "tiny_language_model": tiny_language_model,
        "tiny_digits": tiny_digits,
        "tiny_chats": tiny_chats,
    }


def follow(walk: Walk, folder: Path, given: Mapping[str, Path]) -> None:
    """Type what a walk has, with what a reader has and does on the way."""
    if walk.needs:
        program(walk.needs)
    folder.mkdir()
    with Reader(folder, given, walk.instead) as reader:
        for prepare in walk.prepare:
            prepare(reader)
        reader.printed.clear()
        for piece in walk.pieces():
            for start, act in walk.before.items():
                if piece.text.startswith(start):
                    act(reader)
            if piece.kind == "python":
                reader.run_program(walk.prelude + piece.text)
            else:
                reader.type(piece.text)
        for check in walk.after:
            check(reader)


@pytest.mark.parametrize("walk", QUICK, ids=lambda walk: walk.name)
def test_a_page_says_what_works(walk: Walk, tmp_path: Path, given: Mapping[str, Path]) -> None:
    follow(walk, tmp_path / "reader", given)


@pytest.mark.slow
@pytest.mark.parametrize("walk", SLOW, ids=lambda walk: walk.name)
def test_a_page_says_what_works_in_minutes(walk: Walk, tmp_path: Path, given: Mapping[str, Path]) -> None:
    follow(walk, tmp_path / "reader", given)


def test_every_command_and_program_of_the_pages_is_typed_or_it_is_said_why_not() -> None:
    walked = {piece for walk in (*QUICK, *SLOW) for piece in walk.pieces()}
    left = [piece for piece in TYPED if piece not in walked and not any(each.is_of(piece) for each in NOT_TYPED)]
    assert not left, "give each a walk in page_walks.py, or a reason in NOT_TYPED"


def test_what_is_not_typed_or_typed_otherwise_stands_on_its_page() -> None:
    assert not [each for each in NOT_TYPED if sum(map(each.is_of, TYPED)) != 1]
    named = {name for each in NOT_TYPED for name in re.findall(r"test_\w+\.py", each.reason)}
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for walk in (*QUICK, *SLOW):
        texts = [piece.text for piece in pieces(ROOT / walk.page)]
        parts = [*walk.instead, *walk.before]
        assert not [part for part in parts if not any(part in text for text in texts)], walk.name
        assert {*walk.headings} <= {piece.heading for piece in walk.pieces()}, walk.name


def test_no_command_hides_in_a_block_without_a_language() -> None:
    plain = [piece for page in PAGES for piece in pieces(page) if piece.kind == "" and RESULTS not in piece.page]
    assert not [piece for piece in plain for line in piece.text.splitlines() if line.startswith(("$ ", "fedlora "))]


@pytest.mark.parametrize("piece", TOML, ids=lambda piece: f"{piece.page}: {piece.heading}")
def test_a_run_file_or_site_file_of_a_page_is_accepted(piece: Piece, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(piece.text, encoding="utf-8")
    if "[site]" in piece.text:
        load_site(path, needs_data=False)
    else:
        load_run(path)
