"""The pictures of a comparison over rounds and blocks, a small one for each variant on one scale."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from fedlora.comparison.evaluation import Evaluation, Row
from fedlora.comparison.results import Course, RunResult
from fedlora.comparison.statistics import bca_interval, sample
from fedlora.comparison.tables import layer_means
from fedlora.comparison.wording import mean_text, signed_text, unit_of
from fedlora.server.report.content import Chart
from fedlora.server.report.drawing import Colour, amount_axis, score_axis
from fedlora.server.report.layers import by_module
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import is_percentage, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of a third of the page.
_WIDTH = 310
_HEIGHT = 290
_ERROR_HEIGHT = 190


def courses(evaluation: Evaluation) -> list[Chart]:
    """Return by variant the metric over the rounds beside the baseline's, and below it the paired difference."""
    name = evaluation.comparison.metric_name
    factor = 100 if is_percentage(name) else 1
    baseline = _metric_series(evaluation.comparison.baseline, evaluation.baseline.runs, Colour.GREY)
    shown = [
        (
            row,
            _metric_series("the variant", row.runs, Colour.BLUE),
            _difference_series(row, evaluation.baseline, factor),
        )
        for row in evaluation.methods[1:]
        if row.difference is not None
    ]
    limits = _reached([baseline, *(metric for _, metric, _ in shown)])
    difference_limits = _reached(difference for _, _, difference in shown)
    return [
        series_chart(
            row.variant.name,
            Panel((baseline, metric), partial(score_axis, metric_name=name), limits=limits, name=name, share=1.5),
            Panel((difference,), _difference_axis, limits=difference_limits, name=unit_of(name)),
            description=f"{row.variant.name}: {name} by round, at the end {mean_text(row.metric, name)} against "
            f"{mean_text(evaluation.baseline.metric, name)} of {evaluation.comparison.baseline}; difference "
            f"{signed_text(row.difference.values.mean if row.difference else None, name)}.",
            height=_HEIGHT,
            width=_WIDTH,
        )
        for row, metric, difference in shown
    ]


def errors(evaluation: Evaluation) -> list[Chart]:
    """Return by variant the error of the average over the rounds, before and after the method's correction."""
    shown = []
    for row in evaluation.methods:
        before = _means(row.runs, lambda course: course.error_before)
        if before:
            shown.append((row, before, _means(row.runs, lambda course: course.error_after)))
    return _error_charts([(row.variant.name, before, after) for row, before, after in shown], places="round")


def layer_errors(evaluation: Evaluation) -> list[Chart]:
    """Return by variant the error of the average in the blocks of the model in the last round, a mean over modules."""
    shown = []
    for row in evaluation.methods:
        layers = layer_means(row)
        blocks: dict[int, list[tuple[float, float]]] = {}
        for places in by_module(layers).values():
            for path, block in places.items():
                blocks.setdefault(block, []).append(layers[path])
        before, after = (
            {block: _mean([pair[which] for pair in blocks[block]]) for block in sorted(blocks)} for which in (0, 1)
        )
        if blocks:
            shown.append((row.variant.name, before, after))
    return _error_charts(shown, places="block of the model")


def _error_charts(shown: Sequence[tuple[str, Mapping[int, float], Mapping[int, float]]], *, places: str) -> list[Chart]:
    """Return for each name a chart of errors before and after, all on one scale."""
    limits = [value for _, before, after in shown for value in (*before.values(), *after.values())]
    # Wider before than after, to be seen where the other covers it.
    (line_before, dot_before), (line_after, dot_after) = ((4, 0), (2, 0)) if places == "round" else ((0, 9), (0, 5))
    charts = []
    for name, before, after in shown:
        last = max(before)
        series = (
            Series("before", before, Colour.ORANGE, width=line_before, dot=dot_before),
            Series("after the correction", after, Colour.BLUE, width=line_after, dot=dot_after),
        )
        words = f"{name}: error of the average by {places}; in {last}, {significant(before[last], 3)} before"
        if last in after:
            words += f" and {significant(after[last], 3)} after the correction"
        panel = Panel(series, amount_axis, limits=limits, name="error")
        charts.append(
            series_chart(name, panel, description=f"{words}.", places=places, height=_ERROR_HEIGHT, width=_WIDTH)
        )
    return charts


def _metric_series(name: str, runs: Sequence[RunResult], colour: Colour) -> Series:
    values, band = _means_and_intervals([run.course.metric for run in runs])
    return Series(name, values, colour, dot=0.0, band=band, band_name="")


def _difference_series(row: Row, baseline: Row, factor: float) -> Series:
    """Return the paired difference by round, over the draws that both have."""
    others = {run.draw: run.course.metric for run in baseline.runs}
    differences = [
        [factor * (value - other) for value, other in zip(run.course.metric, others[run.draw], strict=False)]
        for run in row.runs
        if run.draw in others
    ]
    values, band = _means_and_intervals(differences)
    return Series("", values, Colour.BLUE, dot=0.0, band=band, band_name="95 % interval of the mean")


def _means_and_intervals(
    courses: Sequence[Sequence[float]],
) -> tuple[dict[int, float], dict[int, tuple[float, float]]]:
    """Return by round the mean of what is finite, and its interval; of too few for one, the mean alone as both ends."""
    values: dict[int, float] = {}
    band: dict[int, tuple[float, float]] = {}
    for at, found in enumerate(zip_longest(*courses, fillvalue=math.nan)):
        finite = list(filter(math.isfinite, found))
        if (mean := sample(finite)) is not None:
            interval = bca_interval(finite)
            values[at] = mean.mean
            band[at] = (mean.mean, mean.mean) if interval is None else (interval.low, interval.high)
    return values, band


def _means(runs: Sequence[RunResult], of: Callable[[Course], Sequence[float]]) -> dict[int, float]:
    """Return the mean by round of what the runs have; rounds in which none was measured are left out."""
    courses = zip_longest(*(of(run.course) for run in runs), fillvalue=math.nan)
    means = {at: sample(found) for at, found in enumerate(courses)}
    return {at: mean.mean for at, mean in means.items() if mean is not None}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _reached(series: Iterable[Series]) -> list[float]:
    """Return all values of the series and of their bands."""
    found = list(series)
    values = [value for each in found for value in each.values.values()]
    return values + [end for each in found for ends in each.band.values() for end in ends]


def _difference_axis(axes: "Axes", values: Iterable[float]) -> None:
    """Let the vertical axis show differences about a line at zero."""
    from matplotlib.ticker import MaxNLocator

    finite = [0.0, *filter(math.isfinite, values)]
    pad = 0.08 * (max(finite) - min(finite)) or 1.0
    axes.set_ylim(min(finite) - pad, max(finite) + pad)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.axhline(0, color=Colour.QUIET, linewidth=1.1, zorder=1)
