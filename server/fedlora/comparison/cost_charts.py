"""The pictures of what the variants of a comparison send: for which metric, and until the target."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedlora.comparison.evaluation import Evaluation, Row
from fedlora.comparison.statistics import sample
from fedlora.comparison.variant_rows import (
    AXIS_HEIGHT,
    LINE_HEIGHT,
    label_height,
    name_rows,
    rows_height,
    variant_label,
)
from fedlora.comparison.wording import mean_text, of_runs_text
from fedlora.server.report.content import Chart, Key
from fedlora.server.report.drawing import Colour, draw, score_axis, write_beside
from fedlora.server.report.wording import capital

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def costs(evaluation: Evaluation) -> list[Chart]:
    """Return the metric against the megabytes sent, and the megabytes that it took to reach the target."""
    name = evaluation.comparison.metric_name
    sending = [row for row in evaluation.methods if any(megabytes > 0 for megabytes, _ in _path(row))]
    if not sending:
        return []
    height = max(300, rows_height([row.variant for row in sending]))
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
        height=rows_height([row.variant for row in sending]),
    )
    return [against, reached]


def _paint_to_target(figure: "Figure", *, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    places = name_rows(axes, [row.variant for row in rows])
    lengths = [row.cost.megabytes_to_target.mean if row.cost.megabytes_to_target else 0.0 for row in rows]
    axes.barh(places, lengths, color=Colour.BLUE, height=LINE_HEIGHT)
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
        ends[row.variant.name] = path[-1]
        reached += [value for _, value in path]
    if evaluation.target is not None:
        axes.axhline(evaluation.target, color=Colour.ORANGE, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
        reached.append(evaluation.target)
    score_axis(axes, reached, metric_name=metric_name)
    axes.set_xlim(0, 1.02 * max(megabytes for megabytes, _ in ends.values()))
    axes.set_xlabel("MB, down and up, all clients together")
    labels = {row.variant.name: variant_label(row.variant) for row in rows}
    _write_at_the_side(axes, ends, labels, height=height)


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


def _write_at_the_side(
    axes: "Axes", ends: Mapping[str, tuple[float, float]], labels: Mapping[str, str], *, height: int
) -> None:
    """Write names right of the axes, each as high as its line ends or beside it where another stands there."""

    def scaled(value: float) -> float:
        return float(axes.transScale.transform((1, value))[1])

    low, high = map(scaled, axes.get_ylim())
    wanted = {name: (scaled(value) - low) / (high - low) for name, (_, value) in ends.items()}
    sizes = {name: (label_height(labels[name]) - 6) / (height - AXIS_HEIGHT) for name in ends}
    for name, place in _apart(wanted, sizes).items():
        axes.annotate(
            labels[name],
            ends[name],
            (1.07, place),
            textcoords="axes fraction",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": Colour.GREY,
                "linewidth": 0.6,
                "shrinkA": 2,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
        )


def _apart(wanted: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Return the middles of labels between 0 and 1, near to those wanted, with no label on another.

    Halfway between all pushed down and all pushed up: where labels are free of each other in both, so they are there.
    """
    from_above = sorted(wanted, key=wanted.__getitem__, reverse=True)
    pushed_up = {name: 1 - place for name, place in _stacked(from_above[::-1], wanted, sizes).items()}
    mirrored = {name: 1 - place for name, place in wanted.items()}
    pushed_down = _stacked(from_above, mirrored, sizes)
    return {name: 1 - (pushed_up[name] + pushed_down[name]) / 2 for name in from_above}


def _stacked(names: Sequence[str], wanted: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """Return the places of names from the lowest on, each moved up over the one before, and back below 1."""
    places: dict[str, float] = {}
    edge = 0.0
    for name in names:
        places[name] = max(wanted[name], edge + sizes[name] / 2)
        edge = places[name] + sizes[name] / 2
    edge = 1.0
    for name in reversed(names):
        places[name] = min(places[name], edge - sizes[name] / 2)
        edge = places[name] - sizes[name] / 2
    return places
