"""What of a report's look can be measured: no label is on another, no dot cut in half, and what scrolls hints at it."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from report_pages import finished, render, start

from fedlora.server.report.content import Chart
from fedlora.server.report.drawing import Colour, amount_axis, score_axis
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import score_text

_LINE_HEIGHT = 12.0


def accuracy_chart(*values: float, best: int) -> Chart:
    series = Series("held-out", dict(enumerate(values)), Colour.BLUE, dot=7)
    last_text = partial(score_text, metric_name="accuracy")
    panel = Panel((series,), partial(score_axis, metric_name="accuracy"), last_text=last_text)
    return series_chart("Accuracy", panel, description="accuracy", marked={best: "best round"})


def height_of(chart: Chart, words: str) -> float:
    """Return where a text of a chart stands, from above."""
    found = re.search(rf'<text[^>]* y="([\d.]+)"[^>]*>{re.escape(words)}</text>', chart.svg)
    assert found is not None, words
    return float(found[1])


def heights_of_dots(chart: Chart) -> list[float]:
    return [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"[^>]*stroke: var\(--blue\)', chart.svg)]


def cut_off(chart: Chart) -> list[str]:
    """Return what of a series is cut off at the axes' edges."""
    groups = re.findall(r"<g[^>]*clip-path[^>]*>.*?</g>|<path[^>]*clip-path[^>]*>", chart.svg, flags=re.DOTALL)
    return [group for group in groups if "var(--blue)" in group]


@pytest.mark.parametrize("values", [(0.2, 0.6, 1.0), (0.2, 0.6, 0.99), (0.97, 0.99, 1.0), (0.3, 0.2, 0.1)])
def test_the_best_rounds_name_is_not_over_the_last_value(values: tuple[float, ...]) -> None:
    chart = accuracy_chart(*values, best=2)
    last = height_of(chart, score_text(values[-1], "accuracy"))
    assert abs(height_of(chart, "best round") - last) >= _LINE_HEIGHT


def test_dots_at_either_end_of_a_percentage_are_whole_and_no_value_beyond_it_is_told() -> None:
    chart = accuracy_chart(0.0, 1.0, 1.0, best=2)
    assert cut_off(chart) == []
    high, low = (height_of(chart, text) for text in ("100 %", "0 %"))
    dots = heights_of_dots(chart)
    assert min(dots) < high
    assert max(dots) < low
    assert height_of(chart, "best round") < min(dots) - 7
    assert not re.search(r">(1[1-9]\d|10[1-9]|-\d+) %<", chart.svg)


def test_what_is_beyond_100_percent_does_not_widen_the_axis_and_stays_inside() -> None:
    chart = accuracy_chart(0.5, 1e9, 0.5, best=0)
    assert height_of(chart, "100 %") < height_of(chart, "0 %") - 100
    assert len(cut_off(chart)) > 0


def test_a_dot_of_a_loss_near_zero_is_whole_and_a_series_without_values_takes_no_room() -> None:
    loss = Series("loss", {1: 2.0, 2: 0.0}, Colour.BLUE)
    chart = series_chart("Loss", Panel((loss, Series("", {}, Colour.GREY)), amount_axis), description="loss")
    assert cut_off(chart) == []
    dots = heights_of_dots(chart)
    assert max(dots) - min(dots) > chart.height / 2


def test_whatever_scrolls_has_a_shadow_where_there_is_more() -> None:
    page = render(start(), finished(1))
    style = re.sub(r"/\*.*?\*/", "", page[page.index("<style>") : page.index("</style>")])
    rules = [
        (re.sub(r"^.*[;}>]", "", names).strip(), body) for names, body in re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    ]
    scrolling = {name for names, body in rules for name in names.split(", ") if re.search(r"overflow(-x)?: auto", body)}
    hinted = {name for names, body in rules for name in names.split(", ") if "no-repeat local" in body}
    assert scrolling == hinted == {".scrolls", ".wide", "pre"}
