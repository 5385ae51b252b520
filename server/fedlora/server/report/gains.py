"""What names (groups, clients) scored before and after: a picture, a table and a sentence."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedlora.server.report.content import Chart, Columns, Key, Table, table
from fedlora.server.report.drawing import Colour, draw, rows_axis, score_axis, short, write_beside
from fedlora.server.report.numbers import Gain
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import PERPLEXITY, gain_text, is_percentage, score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Past so many names, a chart shows their distribution and a table their names.
_MOST_NAMED = 16


def gains_chart(title: str, gains: Sequence[Gain], metric_name: str, *, noun: str) -> Chart:
    """Return a line for each name from its score before to its score after; of many names, in the scores' order."""
    description = f"{title}: {about_gains(gains, metric_name)}"
    if len(gains) > _MOST_NAMED:
        return _distribution(title, gains, metric_name, noun=noun, description=description)
    keys = [Key("ring grey", "before"), Key("blue", "after")][: 2 if _is_over(gains) else 1]
    return draw(
        partial(_paint_rows, gains=gains, metric_name=metric_name),
        title=title,
        description=description,
        keys=keys,
        height=52 + 28 * max(len(gains), 2),
    )


def gains_table(
    caption: str, by_measure: Mapping[str, Sequence[Gain]], totals: Mapping[str, Sequence[Gain]], *, noun: str
) -> Table:
    """Return the gains of all names and their totals, by each measure; what is gained, by the first."""
    main, *others = by_measure
    columns = [
        (noun, lambda row: row[main].name or "(no name)"),
        ("examples", lambda row: f"{row[main].num_examples:,}"),
        *score_columns(main),
        (
            f"gain{points(main, ',')}",
            lambda row: gain_text(row[main].before, row[main].after, main),
        ),
        *(column for name in others for column in score_columns(name, prefix=f"{name} ")),
    ]
    return table(caption, columns, rows_of(by_measure), totals=rows_of(totals))


def score_columns(name: str, *, prefix: str = "") -> Columns[Mapping[str, Gain]]:
    """Return the columns of one measure of the rows' gains."""
    return (
        (f"{prefix}before", lambda row: score_text(row[name].before, name)),
        ("after", lambda row: score_text(row[name].after, name)),
    )


def rows_of(by_measure: Mapping[str, Sequence[Gain]]) -> list[dict[str, Gain]]:
    """Return for each name its gains by measure."""
    return [dict(zip(by_measure, row, strict=True)) for row in zip(*by_measure.values(), strict=True)]


def about_gains(gains: Sequence[Gain], metric_name: str) -> str:
    """Return who gained most and least."""
    moved = [(gain, gain.after - gain.before) for gain in gains if gain.after is not None and gain.before is not None]
    if not moved:
        return "Scores before training."
    worse, sign = ("higher", -1) if metric_name == PERPLEXITY else ("lower", 1)
    moved.sort(key=lambda pair: sign * pair[1])
    least, most = (
        f"{gain.name} ({gain_text(gain.before, gain.after, metric_name)}{points(metric_name)})"
        for gain, _ in (moved[0], moved[-1])
    )
    if len(moved) == 1:
        gain = moved[0][0]
        return f"{gain.name} gained {gain_text(gain.before, gain.after, metric_name)}{points(metric_name)}."
    fell = sum(sign * change < 0 for _, change in moved)
    ends = f"{fell} of {len(moved)} ended {worse} than they began" if fell else f"None ended {worse} than it began"
    return f"Most was gained by {most}, least by {least}. {ends}."


def points(metric_name: str, mark: str = "") -> str:
    """Return the unit that follows a gain, behind a mark; nothing where it has none."""
    return f"{mark} points" if is_percentage(metric_name) else ""


def _is_over(gains: Sequence[Gain]) -> bool:
    return any(gain.after is not None for gain in gains)


def _paint_rows(figure: "Figure", *, gains: Sequence[Gain], metric_name: str) -> None:
    axes = figure.subplots()
    for place, gain in enumerate(gains):
        before, after = _or_nan(gain.before), _or_nan(gain.after)
        axes.plot([before, after], [place, place], color=Colour.GREY, linewidth=2, zorder=2)
        axes.plot(
            [before],
            [place],
            "o",
            color=Colour.GREY,
            markerfacecolor=Colour.PAPER,
            markeredgewidth=2,
            markersize=9,
            zorder=3,
            clip_on=False,
        )
        axes.plot([after], [place], "o", color=Colour.BLUE, markersize=8, zorder=4, clip_on=False)
        if math.isfinite(latest := after if math.isfinite(after) else before):
            write_beside(axes, score_text(latest, metric_name), (latest, place), is_left=latest < before)
    rows_axis(axes, [gain.name for gain in gains])
    values = [_or_nan(value) for gain in gains for value in (gain.before, gain.after)]
    score_axis(axes, values, metric_name=metric_name, horizontal=True)
    if metric_name == PERPLEXITY:
        # What falls is labelled on its left, where the names stand.
        (low, high), is_log = axes.get_xlim(), axes.get_xscale() == "log"
        axes.set_xlim(low * (low / high) ** 0.16 if is_log else low - 0.16 * (high - low), high)


def _distribution(title: str, gains: Sequence[Gain], metric_name: str, *, noun: str, description: str) -> Chart:
    def height(gain: Gain) -> float:
        score = _or_nan(gain.before if gain.after is None else gain.after)
        return score if math.isfinite(score) else -math.inf

    ordered = sorted(gains, key=height)
    before = {place: _or_nan(gain.before) for place, gain in enumerate(ordered)}
    after = {place: _or_nan(gain.after) for place, gain in enumerate(ordered)}
    series = Series("before", before, Colour.GREY, width=0), Series("after", after, Colour.BLUE, width=0)
    return series_chart(
        title,
        Panel(
            series,
            partial(score_axis, metric_name=metric_name),
            stems=Colour.GREY,
            is_percentage=is_percentage(metric_name),
        ),
        description=description,
        places=f"{len(ordered)} {noun}s: {short(ordered[0].name)} (lowest) to {short(ordered[-1].name)} (highest)",
        has_ticks=False,
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
