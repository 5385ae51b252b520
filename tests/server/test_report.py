"""The report: what it says of a run's numbers, and that it is one safe, self-contained page."""

import math
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from report_pages import (
    DOMAINS,
    Page,
    aggregation,
    client,
    finished,
    held_out,
    render,
    start,
    text_of,
    text_with_charts,
)

from fedlora.common.messages import Score
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.record.totals import mean_loss
from fedlora.server.report import ShownExample
from fedlora.server.report.content import table
from fedlora.server.report.drawing import Colour, amount_axis
from fedlora.server.report.layers import by_module
from fedlora.server.report.numbers import client_gains, group_gains, refusals, total_gains
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import (
    UNKNOWN,
    duration_text,
    error_texts,
    gain_text,
    ranges_text,
    significant,
    size_text,
)

RUN = (start(), finished(1), finished(2), finished(3, refused={"site-9": "norm_too_large: 812 times the median"}))


@pytest.fixture(scope="module")
def page() -> str:
    """Return the page of RUN."""
    return render(*RUN, examples=[ShownExample("mnist", "7", "1", "7", picture_png=b"\x89PNG")])


def test_headline_compares_the_start_with_the_end(page: str) -> None:
    assert (
        "Accuracy on held-out examples rose from 10.0\N{NO-BREAK SPACE}% to 70.0\N{NO-BREAK SPACE}% in 3 rounds."
        in page
    )


def test_a_loss_of_accuracy_is_said_to_fall() -> None:
    worse = finished(1, held_out=held_out({"mnist": 0.02, "serif": 0.06}))
    text = text_of(start(), worse)
    assert "fell from 10.0 % to 4.0 % in 1 round." in text
    assert "2 of 2 ended lower than they began." in text


def test_an_unfinished_run_says_how_many_rounds_were_planned() -> None:
    assert "in 1 of the 10 planned rounds." in text_of(*RUN[:2], num_rounds=10)


def test_error_that_rose_is_not_called_smaller() -> None:
    text = text_of(start(), finished(1, aggregation=aggregation(0.2, 0.25)))
    assert "it was 0.200, and 0.250 after LoRA-FAIR\N{RIGHT SINGLE QUOTATION MARK}s correction (25 % more)" in text
    assert "smaller than before in 0 of 1 round, and larger in 1." in text


def test_plain_averaging_is_not_said_to_correct() -> None:
    text = text_of(start(), finished(1, aggregation=aggregation(0.2, 0.2)))
    assert "leaves it as it is" in text
    assert "after the correction" not in text


def test_scores_of_a_sample_and_of_the_whole_set_are_told_apart() -> None:
    sampled = finished(1, held_out=held_out(dict.fromkeys(DOMAINS, 0.3), of_each=50, is_complete=False))
    text = text_of(start(), sampled, finished(2))
    assert "on all 200 before training and after round 2 (filled dots), and on a sample of 100 otherwise" in text
    assert "different examples" not in text
    assert "different examples" in text_of(start(), sampled)


def test_scores_are_said_to_be_of_different_examples_only_where_they_are() -> None:
    assert "different examples" not in text_of(start(), finished(1))
    as_many = held_out(dict.fromkeys(DOMAINS, 0.3), is_complete=False)
    assert "different examples" not in text_of(start(), finished(1, held_out=as_many))
    another_site = held_out(dict.fromkeys((*DOMAINS, "optdigits"), 0.3))
    assert "different examples" in text_of(start(), finished(1, held_out=another_site))


def test_refused_updates_have_a_table_only_when_there_are_any(page: str) -> None:
    assert "norm too large: 812 times the median" in page
    assert "Refused updates" not in render(*RUN[:2])


def test_page_fetches_nothing_and_runs_nothing(page: str) -> None:
    parsed = Page(page)
    assert not list(parsed.named("script", "link", "iframe", "object", "base"))
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_colour_of_a_chart_follows_the_theme(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(charts) == 12
    assert not [colour for chart in charts for colour in re.findall(r"(?:fill|stroke): ?#\w+", chart)]
    used = set(re.findall(r"var\(--(\w+)\)", page))
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    for theme in (light, dark):
        assert used <= set(re.findall(r"--(\w+):", theme))


def test_charts_are_described_and_their_ids_do_not_clash(page: str) -> None:
    parsed = Page(page)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.named("svg"))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a & "$x^2$" {y} \\frac', "東京\n京都"])
def test_names_from_outside_are_text_and_nothing_else(name: str) -> None:
    domains = {name: 0.1, "other": 0.2}
    reports = (
        start(domains),
        finished(1, {name: client(), "other": client()}, held_out=held_out(domains), refused={f"{name}2": name}),
    )
    shown = [ShownExample(name, name, "x", name, text=name), ShownExample(name, name, "x", "y", picture_png=b"")]
    outside = {"title": name, "subtitle": name, "config_toml": name, "load_code": name, "versions": {name: name}}
    parsed = Page(render(*reports, examples=shown, **outside))
    assert not list(parsed.named("script"))
    assert parsed.text.count(" ".join(name.split())) > 10


def test_same_run_gives_the_same_page() -> None:
    assert render(*RUN[:2]) == render(*RUN[:2])


@pytest.mark.parametrize(
    "reports",
    [
        pytest.param((start(),), id="start only"),
        pytest.param((start(), finished(1)), id="one round"),
        pytest.param((start({"": 0.1}), finished(1, held_out=held_out({"": 0.4}))), id="no groups"),
        pytest.param((start(), finished(1, {"a": client(validates=False)})), id="no validation"),
        pytest.param((start(), finished(1, {"a": client(math.nan)}), finished(2)), id="loss not finite"),
        pytest.param((start(), finished(1, {"a": client(after=math.nan)})), id="validation not finite"),
        pytest.param((start({"a": math.nan}), finished(1, held_out=held_out({"a": math.nan}))), id="score not finite"),
        pytest.param((start(), finished(1, {}, refused={"a": "timeout"}, aggregation=None)), id="nobody came"),
        pytest.param((start(), finished(1, aggregation=aggregation(math.inf, math.inf))), id="error infinite"),
        pytest.param((start(), finished(1, aggregation=aggregation(0.0, 0.0))), id="no error"),
        pytest.param((start(), finished(1, aggregation=aggregation(paths=()))), id="no layers"),
        pytest.param((start(), finished(1, aggregation=aggregation(paths=("head", "0", "a.1")))), id="odd layer names"),
        pytest.param((finished(4), finished(5)), id="without the start"),
        pytest.param((start(), finished(1, seconds={})), id="no times"),
    ],
)
def test_incomplete_runs_have_a_report_too(reports: tuple[RoundReport, ...]) -> None:
    assert "digits" in text_with_charts(*reports)


def test_metric_other_than_accuracy_is_a_plain_number() -> None:
    text = text_of(start(), finished(1), metric_name="f1")
    assert "F1 on held-out examples rose from 0.100 to 0.300 in 1 round." in text
    assert "+0.200" in text


def test_without_held_out_set_the_clients_own_validation_speaks() -> None:
    reports = (finished(1, held_out=None), finished(2, held_out=None))
    text = text_of(*reports)
    assert "own validation examples rose from 10.0 % to 50.0 % in" in text
    assert "held-out" not in text.lower()


def test_without_any_score_the_report_says_so() -> None:
    clients = {"a": client(validates=False)}
    assert "there is no score to show" in text_of(finished(1, clients, held_out=None))


def test_loss_that_is_not_finite_is_named() -> None:
    text = text_of(start(), finished(1), finished(2, {"mnist": client(math.nan), "serif": client()}))
    assert "It was not finite in round 2, at mnist" in text


def test_hundred_clients_and_a_large_model_stay_readable() -> None:
    names = [f"hospital_{number:03d}" for number in range(100)]
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    paths = tuple(f"model.layers.{block}.mlp.{module}" for block in range(32) for module in modules)
    clients = {name: client() for name in names}
    scores = held_out(dict.fromkeys(names, 0.5))
    rounds = [finished(n, clients, held_out=scores, aggregation=aggregation(paths=paths)) for n in range(1, 4)]
    html = render(start(dict.fromkeys(names, 0.1)), *rounds)
    assert len(html) < 1_500_000
    text = Page(html).text
    assert "100 groups: hospital_000 (lowest) to hospital_099 (highest)" in text
    assert all(module in text for module in modules)


def test_gallery_sorts_examples_by_what_training_changed() -> None:
    shown = [
        ShownExample("en", "food", "people", "food", text="an apple"),
        ShownExample("en", "food", "people", "animals", text="a pear"),
        ShownExample("en", "food", "food", "animals", text="a plum"),
    ]
    text = text_of(*RUN[:1], examples=shown)
    order = [text.index(words) for words in ("Now right", "an apple", "Still wrong", "a pear", "Now wrong", "a plum")]
    assert order == sorted(order)


def test_shown_example_needs_a_picture_or_a_text() -> None:
    with pytest.raises(ValueError, match="either a picture or a text"):
        ShownExample("en", "food", "food", "food")


def test_report_without_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one round report"):
        render()


def test_gains_take_the_first_and_the_last_score() -> None:
    reports = (start({"a": 0.1, "b": 0.2}), finished(1, held_out=held_out({"a": 0.5, "b": 0.4})))
    assert [(gain.name, gain.before, gain.after) for gain in group_gains(reports)] == [("a", 0.1, 0.5), ("b", 0.2, 0.4)]
    assert [gain.name for gain in total_gains(reports)] == ["all examples"]
    own = client_gains((finished(1, {"a": client(before=0.1, after=0.3)}), finished(2, {"a": client(after=0.6)})))
    assert [(gain.before, gain.after) for gain in own] == [(0.1, 0.6)]


def test_mean_of_groups_is_shown_where_it_differs_from_that_of_all_examples() -> None:
    uneven = HeldOutReport(Score(110, 1.0, 0.2), {"a": Score(100, 1.0, 0.1), "b": Score(10, 1.0, 0.9)}, True)
    reports = (finished(1, held_out=uneven), finished(2, held_out=uneven))
    assert [(gain.name, gain.after) for gain in total_gains(reports)] == [
        ("mean of the groups", 0.5),
        ("all examples", 0.2),
    ]


def test_mean_loss_weighs_clients_by_their_examples() -> None:
    clients = {"a": ClientReport(300, 8, 1.0, None, None, {}), "b": ClientReport(100, 8, 3.0, None, None, {})}
    assert mean_loss(finished(1, clients)) == pytest.approx(1.5)
    assert math.isnan(mean_loss(finished(1, {})))


def test_refusals_are_counted_by_client_and_code() -> None:
    reports = [finished(n, refused={"a": f"norm_too_large: {n} times", "b": "timeout"}) for n in (1, 2)]
    found = [(each.client, each.reason, each.rounds) for each in refusals(reports)]
    assert found == [("a", "norm_too_large: 2 times", (1, 2)), ("b", "timeout", (1, 2))]


def test_layers_are_sorted_by_module_and_block() -> None:
    paths = ("layers.0.attention.output.dense", "layers.0.output.dense", "layers.1.output.dense", "layers.0.query")
    assert by_module((*paths, "pooler", "head.0")) == {
        "attention.output.dense": {paths[0]: 0},
        "output.dense": {paths[1]: 0, paths[2]: 1},
        "query": {paths[3]: 0},
        "pooler": {"pooler": 0},
        "head": {"head.0": 0},
    }


def test_numbers_read_as_people_write_them() -> None:
    assert [duration_text(s) for s in (3.14, 59.6, 605, 4000)] == ["3.1 s", "60 s", "10 min 5 s", "1 h 6 min"]
    assert [size_text(size) for size in (999, 1234, 59_400_000, 2_130_000_000)] == [
        "999 bytes",
        "1.23 kB",
        "59.4 MB",
        "2.13 GB",
    ]
    assert [significant(value, 3) for value in (0, 0.0123, 1.5, 1234.5)] == ["0", "0.0123", "1.50", "1234"]
    assert error_texts(0.18421, 0.18394) == ("0.1842", "0.1839")
    assert gain_text(0.7066, 0.6944, "accuracy") == "-1.3"
    assert ranges_text([1, 3, 4, 5, 9]) == "1, 3-5, 9"


def test_a_column_in_which_nothing_is_known_is_left_out() -> None:
    columns = (("name", str), ("size", lambda word: word[:0] or UNKNOWN), ("length", lambda word: str(len(word))))
    shown = table("Words", columns, ["one", "three"], totals=["all"])
    assert shown.head == ["name", "length"]
    assert (shown.rows, shown.totals) == ([["one", "3"], ["three", "5"]], [["all", "3"]])


def test_a_series_with_gaps_and_one_without_values_can_be_drawn() -> None:
    known = Series("known", {1: 1.0, 2: math.nan, 4: math.inf}, Colour.BLUE, band={1: (0.5, 1.5)})
    chart = series_chart("Growth", Panel((known, Series("none", {}, Colour.GREY)), amount_axis), description="grows")
    assert [key.words for key in chart.keys] == ["known", "lowest to highest"]
    assert "nan" not in chart.svg


def test_a_privacy_budget_has_a_section_that_says_what_it_does_not_cover() -> None:
    rounds = [finished(number, epsilon=1.25 * number, num_clipped=(2, 0), aggregation=None) for number in (1, 2)]
    text = text_of(start(), *rounds)
    assert "All global adapters up to round 2 together have an epsilon of 2.50 for each client" in text
    assert "What else stands in this report is not noised, and epsilon says nothing of it" in text
    assert "2 of 2 and 0 of 2" in text
    assert "epsilon" not in text_of(start(), finished(1))
