"""A comparison as `comparison.md`: the finding, the tables, and the command that makes them again. Pure."""

import re
from collections.abc import Sequence

from fedlora.comparison import finding, tables
from fedlora.comparison.evaluation import Evaluation, evaluate
from fedlora.comparison.results import Comparison
from fedlora.server.report.content import Table


def render(comparison: Comparison, *, target: float | None = None) -> str:
    """Return the text of the file.

    Args:
        comparison: finished or not.
        target: of the metric, which rounds and megabytes are counted to; without it the baseline's mean.

    Raises:
        ValueError: the baseline is no method among the variants.
    """
    evaluation = evaluate(comparison, target=target)
    parts = [f"# {_words(comparison.title)}", f"**{_words(finding.headline(evaluation))}**"]
    parts.append(_words(finding.about_metric(evaluation)))
    parts += _section("Differences", evaluation, tables.differences(evaluation), about=finding.about_tests(evaluation))
    if same := finding.alike(evaluation):
        parts.append(_list(same))
    parts += _section("Scores", evaluation, tables.scores(evaluation))
    if evaluation.references:
        parts.append(_table(tables.scores(evaluation, of_references=True)))
        if about := finding.about_references(evaluation):
            parts.append(_words(about))
    parts += _section("Cost", evaluation, tables.costs(evaluation), about=finding.about_costs(evaluation))
    of_parts = tables.groups(evaluation), tables.clients(evaluation)
    parts += _section("Groups and clients", evaluation, *of_parts, about=finding.about_parts())
    parts += _section("Error of the average", evaluation, tables.errors(evaluation))
    parts += _section("Every run", evaluation, tables.draws(evaluation))
    if notes := finding.left_out(evaluation):
        parts += ["## Left out", _list(notes)]
    parts += ["## Settings", _words(finding.about_tuning(evaluation)), _table(tables.settings(evaluation))]
    if comparison.command:
        parts += ["## Make it again", _code(comparison.command)]
    return "\n\n".join(parts) + "\n"


def _section(title: str, evaluation: Evaluation, *shown: Table | None, about: str = "") -> list[str]:
    """Return a heading, its tables, and below each what so many draws can show; nothing without a table."""
    found = [each for each in shown if each is not None and each.rows]
    if not found:
        return []
    below = _words(finding.about_power(evaluation))
    return [f"## {title}", *([_words(about)] if about else []), *(f"{_table(each)}\n\n{below}" for each in found)]


def _list(notes: Sequence[str]) -> str:
    return "\n".join(f"- {_words(note)}" for note in notes)


def _table(shown: Table) -> str:
    marks = ["---" if place < shown.num_text_columns else "---:" for place in range(len(shown.head))]
    rows = [shown.head, *shown.rows, *shown.totals]
    head, *lines = (_row([_words(text) for text in row]) for row in rows)
    return "\n".join([f"**{_words(shown.caption)}**", "", head, _row(marks), *lines])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(text: str) -> str:
    """Return a text on one line, of which nothing is taken for markup; brackets and underscores alone are none."""
    return re.sub(r"[\\`*<>~|]|(?<!\w)_|_(?!\w)|\](?=[(\[])", r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    """Return a block of code behind a fence that is longer than any in it."""
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
