"""The outputs of a comparison: what their tables say, and that the page is one safe, self-contained file."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

from made_comparisons import BASELINE, comparison, run
from report_pages import Page

from fedlora.comparison import cost_charts, markdown, page, tables
from fedlora.comparison.evaluation import evaluate
from fedlora.comparison.grid import variant_name
from fedlora.comparison.results import CODEC, Comparison, Variant
from fedlora.comparison.variant_rows import variant_label
from fedlora.comparison.wording import variant_lines
from fedlora.server.report.drawing import short

TUNED = "lora_fair, train.learning_rate=0.002"
MADE = comparison(
    {TUNED: 0.1, "flora": -0.02},
    variants=(
        Variant(BASELINE, BASELINE),
        Variant(
            TUNED, "lora_fair", {"train.learning_rate": "0.002"}, {"train.learning_rate": ("0.001", "0.002", "0.004")}
        ),
        Variant("flora", "flora"),
        Variant("local_only", "local_only", kind="reference"),
    ),
    runs=(
        *comparison({TUNED: 0.1, "flora": -0.02}).runs,
        *comparison({"local_only": -0.2}).runs[10:],
        run("flora", 10, 0.9, fault="no update depends on another"),
    ),
)
EMPTY = comparison({"flora": 0.1}, runs=())


@pytest.fixture(scope="module")
def html() -> str:
    return page.render(MADE)


def cells(text: str, first: str) -> list[str]:
    """Return the cells of the first row of a markdown text that begins with this."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_markdown_has_each_difference_with_what_can_be_said_of_it() -> None:
    text = markdown.render(MADE)
    assert cells(text, TUNED) == [TUNED, "10", "+10.0", "1.1", "[+9.4, +10.6]", "0.002", "0.0039", "1.2", "yes"]
    assert cells(text, "local_only")[:4] == ["local_only", "10", "30.4 %", "4.6"]
    assert "local_only trains every client in every round" in text
    assert text.count("The smallest difference that 10 draws show") == text.count("\n| ---") - 2
    for words in (
        "multiple comparisons",
        "asks for more draws because of what was seen, gets a smaller p",
        "corrected by Holm for 2 comparisons",
        "[+9.4, +10.6]",
        MADE.command,
    ):
        assert words in text
    assert "worst group" in text


def test_what_was_left_out_and_what_was_tuned_is_in_both_outputs(html: str) -> None:
    for text in (markdown.render(MADE), Page(html).text):
        assert "flora, draw 10, counts for nothing: no update depends on another." in text
        assert "train.learning_rate of 0.001, 0.002, 0.004" in text
    assert "Left out" not in markdown.render(comparison({"flora": 0.1}))


def test_methods_that_do_the_same_are_named_in_both_outputs() -> None:
    made = comparison({"flora": 0.0}, num_draws=3, spread=0.0)
    for text in (markdown.render(made), Page(page.render(made)).text):
        assert "fedit and flora have the same metric in each round of each draw" in text


def test_other_metrics_than_accuracy_are_numbers() -> None:
    text = markdown.render(replace(MADE, metric_name="perplexity"))
    assert cells(text, TUNED)[2] == "+0.100"
    assert "lower is better" in text
    assert "points" not in text


def test_page_says_the_finding_and_shows_the_tables(html: str) -> None:
    text = Page(html).text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"{TUNED} is ahead of fedit by 10.0 points [9.4, 10.6], 10 draws." in text
    for words in ("[+9.4, +10.6]", "[\N{MINUS SIGN}2.6, \N{MINUS SIGN}1.4]", "corrected by Holm", "mnist", "client-1"):
        assert words in text
    for title in ("Round by round", "What it costs", "Error of the average", "By block, in the last round"):
        assert title in text
    assert MADE.command in text


def test_page_fetches_nothing_and_runs_nothing(html: str) -> None:
    parsed = Page(html)
    assert not list(parsed.named("script", "link", "iframe", "object", "base", "img"))
    assert all(attributes.get(name, "#").startswith("#") for _, attributes in parsed.tags for name in ("src", "href"))
    assert not re.search(r"@import|url\((?!#)", html)


def test_every_colour_of_a_chart_follows_the_theme_and_ids_do_not_clash(html: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(charts) == 2 + 2 + 2 + 3 + 3
    assert not [colour for chart in charts for colour in re.findall(r"(?:fill|stroke): ?#\w+", chart)]
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a & "$x^2$" {y} \\frac | b', "東京\n京都"])
def test_names_from_outside_are_text_and_nothing_else(name: str) -> None:
    extra = [run("flora", 0, 0.6, groups={name: 0.5}, clients={name: 0.5}, fault="")]
    made = comparison({"flora": 0.1}, num_draws=1, extra=extra, title=name, command=name)
    assert not list(Page(page.render(made)).named("script"))
    text = markdown.render(made)
    head = next(line for line in text.splitlines() if line.startswith("| group"))
    rows = text[text.index(head) :].split("\n\n")[0].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "<script>" not in text.replace(f"```\n{name}\n```", "")


@pytest.mark.parametrize(
    "made",
    [
        EMPTY,
        comparison({}),
        comparison({"flora": 0.1}, num_draws=1),
        comparison({"flora": 0.0}, spread=0.0),
        comparison({"flora": 0.1}, num_draws=3, extra=[run("flora", 1, 0.5, course={"metric": (), "megabytes": ()})]),
    ],
    ids=["nothing", "alone", "one draw", "no spread", "a run without rounds"],
)
def test_incomplete_comparisons_have_a_page_too(made: Comparison) -> None:
    assert Page(page.render(made)).text
    assert markdown.render(made)


def test_a_comparison_that_was_written_and_read_gives_the_same_outputs() -> None:
    again = CODEC.load(CODEC.dump(MADE))
    assert markdown.render(again) == markdown.render(MADE)


def test_layers_show_what_is_left_and_what_was_before() -> None:
    shown = tables.layer_errors(evaluate(MADE))
    assert shown is not None
    assert shown.rows[0] == ["encoder.layer.0.attention.query", "0.100 (0.200)", "0.100 (0.200)", "0.100 (0.200)"]


def test_a_variant_is_named_beside_a_chart_on_short_lines() -> None:
    settings = {
        "train.optimizer_state": '"keep"',
        "lora.target_modules": "['query', 'value']",
        "train.learning_rate": "0.002",
    }
    variant = Variant(variant_name("fedit", settings), "fedit", settings, {"train.learning_rate": ("0.001", "0.002")})
    lines = ["fedit", "optimizer_state keep", "target_modules ['query', 'value']"]
    assert variant_lines(variant) == lines
    assert variant_label(variant).splitlines() == [short(line, length=22) for line in lines]


def test_names_beside_lines_that_end_together_are_not_on_each_other() -> None:
    """All end at one height; the 12 names are as many lines of text, of which none may be nearer than its height."""
    names = [f"method-{number}" for number in range(11)]
    chart = cost_charts.costs(evaluate(comparison(dict.fromkeys(names, 0.0), num_draws=2, spread=0.0)))[0]
    found = [re.search(rf'<text[^>]* y="([\d.]+)"[^>]*>{name}</text>', chart.svg) for name in (BASELINE, *names)]
    heights = sorted(float(match[1]) for match in found if match is not None)
    assert len(heights) == 12
    assert min(below - above for above, below in pairwise(heights)) > 12
    assert heights[0] > 0
    assert heights[-1] < chart.height
