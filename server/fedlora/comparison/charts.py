"""The pictures of a comparison with a row or a place for each variant: differences, scores, and what they cost."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedlora.comparison import finding
from fedlora.comparison.evaluation import Difference, Evaluation, Row, last_metric
from fedlora.comparison.results import Variant
from fedlora.comparison.statistics import sample
from fedlora.comparison.wording import (
    better_if,
    mean_text,
    of_runs_text,
    signed_text,
    unit_of,
)
from fedlora.server.report.content import Chart, Key
from fedlora.server.report.drawing import Colour, draw, score_axis, short, write_beside
from fedlora.server.report.wording import capital, is_percentage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE_HEIGHT = 14
_LABEL_LENGTH = 22

# What the horizontal axis with its name takes.
_AXIS_HEIGHT = 46


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
        height=_height([row.variant for row in rows]),
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
        height=_height([row.variant for row in rows]),
    )


def costs(evaluation: Evaluation) -> list[Chart]:
    """Return the metric against the megabytes sent, and the megabytes that it took to reach the target."""
    name = evaluation.comparison.metric_name
    sending = [row for row in evaluation.methods if row.cost.megabytes is not None and row.cost.megabytes.mean > 0]
    if not sending:
        return []
    height = max(300, _height([row.variant for row in sending]))
    against = draw(
        partial(_paint_against_megabytes, rows=sending, evaluation=evaluation, height=height),
        title=f"{capital(name)} against megabytes sent",
        description="; ".join(
            f"{row.variant.name} {mean_text(row.metric, name)} for {row.cost.megabytes.mean:.1f} MB"
            for row in sending
            if row.cost.megabytes is not None
        ),
        keys=[
            Key("line grey", evaluation.comparison.baseline),
            Key("line blue", "others"),
            Key("line orange", "target"),
        ],
        height=height,
    )
    reached = draw(
        partial(_paint_to_target, rows=sending),
        title="Megabytes to the target, and in how many of the runs it was reached",
        description="; ".join(
            f"{row.variant.name} {of_runs_text(row.cost.megabytes_to_target, len(row.runs))}" for row in sending
        ),
        height=_height([row.variant for row in sending]),
    )
    return [against, reached]


def variant_label(variant: Variant) -> str:
    """Return a variant's name for the side of a chart: the method, and each setting on a line without its section."""
    method, *settings = variant.name.split(", ")
    names = [setting.rpartition("=")[0].rpartition(".")[2] for setting in settings]
    values = [setting.rpartition("=")[2].strip('"') for setting in settings]
    lines = [method, *(f"{key} {value}".strip() for key, value in zip(names, values, strict=True))]
    return "\n".join(short(line, length=_LABEL_LENGTH) for line in lines)


def _paint_differences(figure: "Figure", *, rows: Sequence[Row], metric_name: str) -> None:
    axes = figure.subplots()
    factor = 100 if is_percentage(metric_name) else 1
    places = _name_rows(axes, [row.variant for row in rows])
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
    places = _name_rows(axes, [row.variant for row in rows])
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


def _paint_to_target(figure: "Figure", *, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    places = _name_rows(axes, [row.variant for row in rows])
    lengths = [row.cost.megabytes_to_target.mean if row.cost.megabytes_to_target else 0.0 for row in rows]
    axes.barh(places, lengths, color=Colour.BLUE, height=_LINE_HEIGHT)
    for place, length, row in zip(places, lengths, rows, strict=True):
        write_beside(axes, of_runs_text(row.cost.megabytes_to_target, len(row.runs)), (length, place))
    axes.set_xlim(0, 1.4 * max(lengths) or 1.0)
    axes.set_xlabel("MB, on the mean of the runs that reach it")


def _paint_against_megabytes(figure: "Figure", *, rows: Sequence[Row], evaluation: Evaluation, height: int) -> None:
    axes = figure.subplots()
    metric_name = evaluation.comparison.metric_name
    ends, reached = {}, []
    for row in rows:
        path = _path(row)
        is_baseline = row is evaluation.baseline
        colour = Colour.GREY if is_baseline else Colour.BLUE
        width, order = (3.0, 2.0) if is_baseline else (1.4, 3.0)
        axes.plot(*zip(*path, strict=True), color=colour, linewidth=width, zorder=order, alpha=0.8)
        axes.plot(*path[-1], "o", color=colour, markersize=7, zorder=4, clip_on=False)
        ends[variant_label(row.variant)] = path[-1]
        reached += [value for _, value in path]
    if evaluation.target is not None:
        axes.axhline(evaluation.target, color=Colour.ORANGE, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        reached.append(evaluation.target)
    score_axis(axes, reached, metric_name=metric_name)
    axes.set_xlim(0, 1.02 * max(megabytes for megabytes, _ in ends.values()))
    axes.set_xlabel("MB, down and up, all clients together")
    _write_at_the_side(axes, ends, height=height)


def _path(row: Row) -> list[tuple[float, float]]:
    """Return by round the megabytes sent and the metric, means over the runs that have both."""
    rounds = max((len(run.course.metric) for run in row.runs), default=0)
    found = []
    for at in range(rounds):
        runs = [run.course for run in row.runs if at < min(len(run.course.metric), len(run.course.megabytes))]
        megabytes, metric = sample([run.megabytes[at] for run in runs]), sample([run.metric[at] for run in runs])
        if megabytes is not None and metric is not None:
            found.append((megabytes.mean, metric.mean))
    return found


def _write_at_the_side(axes: "Axes", ends: Mapping[str, tuple[float, float]], *, height: int) -> None:
    """Write names right of the axes, each as high as its line ends or beside it where another stands there."""

    def scaled(value: float) -> float:
        return float(axes.transScale.transform((1, value))[1])

    low, high = map(scaled, axes.get_ylim())
    wanted = {name: (scaled(value) - low) / (high - low) for name, (_, value) in ends.items()}
    sizes = {name: (_height_of(name) - 6) / (height - _AXIS_HEIGHT) for name in ends}
    for name, place in _apart(wanted, sizes).items():
        axes.annotate(
            name,
            ends[name],
            (1.07, place),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": Colour.GREY, "linewidth": 0.6, "shrinkA": 2, "shrinkB": 5},
        )


def _apart(wanted: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Return the middles of labels between 0 and 1, as near to those wanted as labels of such sizes can be."""
    places: dict[str, float] = {}
    ceiling = 1.0
    for name in sorted(wanted, key=wanted.__getitem__, reverse=True):
        places[name] = min(wanted[name], ceiling - sizes[name] / 2)
        ceiling = places[name] - sizes[name] / 2
    floor = 0.0
    for name in reversed(places):
        places[name] = max(places[name], floor + sizes[name] / 2)
        floor = places[name] + sizes[name] / 2
    return places


def _name_rows(axes: "Axes", variants: Sequence[Variant]) -> list[float]:
    """Name rows from above, each as high as its label, and return their places."""
    places, edge = [], 0.0
    for variant in variants:
        size = _height_of(variant_label(variant))
        places.append(edge + size / 2)
        edge += size
    axes.set_yticks(places, [variant_label(variant) for variant in variants])
    axes.tick_params(axis="y", labelcolor=Colour.INK, pad=6)
    axes.set_ylim(edge, 0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    return places


def _height_of(label: str) -> int:
    return _LINE_HEIGHT * (1 + label.count("\n")) + 12


def _height(variants: Sequence[Variant]) -> int:
    return _AXIS_HEIGHT + sum(_height_of(variant_label(variant)) for variant in variants)
