"""The pages: what is generated is what it would be anew, and each command on them is one that there is."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import typer.main
from guide_pages import PAGES, ROOT, pieces

from fedlora.cli.main import app

GUIDE = ROOT / "deploy" / "guide"
# What stands for something of the reader's own.
_OPEN = ("...", "…")


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", GUIDE / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_references_are_those_of_the_code() -> None:
    found = reference()
    for name, expected in (("run-file.md", found.run_file_page()), ("site-file.md", found.site_file_page())):
        assert (GUIDE / name).read_text() == expected, f"run python deploy/guide/make_reference.py: {name} is another"


def test_the_references_say_what_every_key_is() -> None:
    found = reference()
    for page in (found.run_file_page(), found.site_file_page()):
        assert page.count("\n| `") >= 40
        assert not re.findall(r"^\| .*\|\s*\|$", page, flags=re.MULTILINE), "a key without a description"
        assert "| any |" not in page


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of ours in the blocks of a page, without `fedlora`, a pipe or a redirection."""
    lines = [line for piece in pieces(page) if piece.kind in ("command", "sh") for line in piece.text.splitlines()]
    for line in lines:
        found = re.match(r"(?:\S*/)?fedlora (.*)", line)
        if found and not any(mark in found[1] for mark in _OPEN):
            words = shlex.split(found[1], comments=True)
            end = min([words.index(mark) for mark in ("|", ">", "&&") if mark in words], default=len(words))
            yield words[:end]


def accept(words: list[str]) -> None:
    """Raise click's error if there is no such command, or its options are unknown or lack their value."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "get_command"):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None, f"there is no {name} in fedlora {command.name}"
        command = found
    command.make_context(command.name, words).close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one_that_there_is(page: Path) -> None:
    for words in commands(page):
        accept(words)


@pytest.mark.parametrize("typed", ["simulat", "simulate --sett a=1", "server start run.toml --out", "server begin"])
def test_a_command_that_there_is_not_would_be_found(typed: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        accept(typed.split())


def test_the_pages_have_commands_to_look_at() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) >= 40
    assert sum(1 for page in PAGES for _ in mentions(page)) >= 60


def mentions(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of ours that a sentence of a page names: `fedlora server status | stop`."""
    for found in re.findall(r"`fedlora ([^`]*)`", page.read_text()):
        yield found.replace("[", "").replace("]", "").split()


def accept_mention(words: list[str]) -> None:
    """Raise an error if there are no such commands, which may be several of one group, or if one lacks an option."""
    command: Any = typer.main.get_command(app)
    named, left = [command], list(words)
    while left and hasattr(command, "commands") and not left[0].startswith("-"):
        named = [command.commands[left.pop(0)]]
        while left[:1] == ["|"]:
            named.append(command.commands[left[1]])
            del left[:2]
        command = named[0]
    for command in named:
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in left if word.startswith("--")} <= known, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_sentence_names_is_one_that_there_is(page: Path) -> None:
    for words in mentions(page):
        accept_mention(words)


@pytest.mark.parametrize("named", ["begin", "server status | begin", "server status | stop --outt", "simulate --x"])
def test_a_mention_of_what_there_is_not_would_be_found(named: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        accept_mention(named.split())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        led_to = (page.parent / path) if path else page
        assert led_to.exists(), target
        assert not anchor or anchor in anchors(led_to), target


def test_every_page_is_two_clicks_from_the_readme() -> None:
    seen, ahead = set[Path](), {ROOT / "README.md"}
    for _ in range(3):
        seen |= ahead
        links = {
            (page.parent / target.partition("#")[0]).resolve()
            for page in ahead
            for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
            if "://" not in target
        }
        ahead = {path for path in links if path.suffix == ".md"}
    results = ROOT / "deploy" / "runs" / "compare" / "results"
    assert {page for page in PAGES if results not in page.parents} <= seen
