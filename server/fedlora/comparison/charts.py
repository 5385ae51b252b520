"""The pictures of a comparison with a row for each variant: its differences to the baseline, and its scores."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedlora.comparison import finding
from fedlora.comparison.evaluation import Difference, Evaluation, Row, last_metric
from fedlora.comparison.variant_rows import name_rows, rows_height
from fedlora.comparison.wording import better_if, mean_text, signed_text, unit_of
from fedlora.server.report.content import Chart, Key
from fedlora.server.report.drawing import Colour, draw, score_axis, write_beside
from fedlora.server.report.wording import capital, is_percentage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def differences(evaluation: Evaluation) -> Chart:
    """Return a forest plot: each variant's paired differences, their mean and its interval, about a line at zero."""
    rows = [row for row in evaluation.methods if row.difference is not None]
    baseline, name = evaluation.comparison.baseline, evaluation.comparison.metric_name
    return draw(
        partial(_paint_differences, rows=rows, metric_name=name),
        title=f"Difference to {baseline} in {unit_of(name)}, {better_if(name)} is better",
        description=" ".join(finding.about_row(row, evaluation) for row in rows),
        keys=[
            Key("blue", "mean and 95 % interval, shown"),
            Key("grey", "not shown"),
            Key("ring grey", "one draw"),
        ],
        height=rows_height([row.variant for row in rows]),
    )


def scores(evaluation: Evaluation) -> Chart:
    """Return each run's last metric and their means, references below."""
    rows = [row for row in (*evaluation.methods, *evaluation.references) if row.metric is not None]
    name = evaluation.comparison.metric_name
    has_references = any(row.variant.kind == "reference" for row in rows)
    return draw(
        partial(_paint_scores, rows=rows, metric_name=name),
        title=f"{capital(name)} after the last round",
        description="; ".join(f"{row.variant.name} {mean_text(row.metric, name)}" for row in rows),
        keys=[
            Key("blue", "mean"),
            *([Key("purple", "reference")] if has_references else []),
            Key("ring grey", "one draw"),
        ],
        height=rows_height([row.variant for row in rows]),
    )


def _paint_differences(figure: "Figure", *, rows: Sequence[Row], metric_name: str) -> None:
    axes = figure.subplots()
    factor = 100 if is_percentage(metric_name) else 1
    places = name_rows(axes, [row.variant for row in rows])
    axes.axvline(0, color=Colour.QUIET, linewidth=1.1, zorder=1)
    reached = [0.0]
    for place, row in zip(places, rows, strict=True):
        if row.difference is None:
            continue
        reached += _paint_difference(axes, place, row.difference, factor)
        end = max(factor * value for value in row.difference.by_draw.values())
        if row.difference.interval is not None:
            end = max(end, factor * row.difference.interval.high)
        text = signed_text(row.difference.values.mean, metric_name).replace("-", "\N{MINUS SIGN}")
        write_beside(axes, text, (end, place))
    low, high = min(reached), max(reached)
    room = (high - low) or 1.0
    axes.set_xlim(low - 0.04 * room, high + 0.18 * room)


def _paint_difference(axes: "Axes", place: float, difference: Difference, factor: float) -> list[float]:
    """Return the values drawn."""
    values = [factor * value for value in difference.by_draw.values()]
    colour = Colour.BLUE if difference.is_shown else Colour.GREY
    _paint_rings(axes, values, place)
    if difference.interval is not None:
        ends = [factor * difference.interval.low, factor * difference.interval.high]
        axes.plot(ends, [place, place], color=colour, linewidth=3, zorder=3)
        values += ends
    axes.plot([factor * difference.values.mean], [place], "o", color=colour, markersize=8, zorder=4, clip_on=False)
    return values


def _paint_scores(figure: "Figure", *, rows: Sequence[Row], metric_name: str) -> None:
    axes = figure.subplots()
    places = name_rows(axes, [row.variant for row in rows])
    for place, row in zip(places, rows, strict=True):
        values = [last_metric(run) for run in row.runs]
        _paint_rings(axes, values, place)
        if row.metric is not None:
            colour = Colour.PURPLE if row.variant.kind == "reference" else Colour.BLUE
            axes.plot([row.metric.mean], [place], "o", color=colour, markersize=8, zorder=4, clip_on=False)
            write_beside(axes, mean_text(row.metric, metric_name), (max(values), place))
    values = [last_metric(run) for row in rows for run in row.runs]
    score_axis(axes, values, metric_name=metric_name, horizontal=True)
    low, high = axes.get_xlim()
    if axes.get_xscale() == "linear":
        axes.set_xlim(low, high + 0.14 * (high - low))


def _paint_rings(axes: "Axes", values: Sequence[float], place: float) -> None:
    axes.plot(
        values,
        [place] * len(values),
        "o",
        color=Colour.GREY,
        markerfacecolor="none",
        markeredgewidth=1.2,
        markersize=5,
        zorder=2,
        clip_on=False,
    )
