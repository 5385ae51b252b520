"""Charts of the aggregation's error: by round, and by layer in one round."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from fedlora.common.aggregation_report import LayerReport
from fedlora.server.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    PAPER,
    PURPLE,
    amount_axis,
    dot_size,
    rounds_axis,
    themed_svg,
)
from fedlora.server.report.layers import by_module
from fedlora.server.report.markup import Html
from fedlora.server.report.numbers import moved, moved_factor
from fedlora.server.report.wording import significant
from fedlora.server.round_report import RoundReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# So many modules are drawn, those with the largest errors.
MOST_MODULES = 8


def error_by_round(reports: Sequence[RoundReport], *, with_after: bool, description: str) -> Html:
    """Return the error of plain averaging, and if asked for that after the correction, over the rounds."""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        rounds, before, after = _errors(reports)
        marker_size = dot_size(len(rounds))
        # Wider, to be seen where the other covers it.
        axes.plot(rounds, before, color=ORANGE, linewidth=4, marker="o", markersize=1.6 * marker_size)
        if with_after:
            axes.plot(rounds, after, color=BLUE, marker="o", markersize=marker_size)
        amount_axis(axes, _top([*before, *after]))
        axes.set_ylabel("error / size of the exact average")
        rounds_axis(axes, rounds[0], rounds[-1])

    return themed_svg(paint, height=300, description=description)


def correction_by_round(reports: Sequence[RoundReport]) -> Html:
    """Return what share of the error the correction removed, and how far it moved A or B for that, over the rounds."""

    def paint(figure: "Figure") -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        rounds, before, after = _errors(reports)
        removed = [1 - a / b if b > 0 else math.nan for a, b in zip(after, before, strict=True)]
        aggregations = [report.aggregation for report in reports if report.aggregation is not None]
        factor = moved_factor(aggregations)
        movements = [_finite(moved(aggregation, factor)) for aggregation in aggregations]
        for axes, values, title, colour in (
            (upper, removed, "error removed", BLUE),
            (lower, movements, f"{factor} moved, of its norm", PURPLE),
        ):
            axes.bar(rounds, values, color=colour, width=0.6)
            axes.set_title(title, loc="left", fontsize=11.5, color=colour)
            _percent_axis(axes, values)
        rounds_axis(lower, rounds[0], rounds[-1])

    description = "By round, what share of the error the correction removed, and how far it moved A or B."
    return themed_svg(paint, height=300, description=description)


def error_by_layer(layers: Mapping[str, LayerReport], *, with_after: bool) -> dict[str, Html]:
    """Return, by module, each block's error of plain averaging.

    If `with_after`, the error after the correction is beside it, and below them how far that moved A or B. Only the
    MOST_MODULES modules with the largest errors are drawn, all on one scale.
    """
    modules = by_module(layers)
    worst = sorted(modules, key=lambda name: -max(_finite_or_zero(layers[path].error_before) for path in modules[name]))
    drawn = [name for name in modules if name in worst[:MOST_MODULES]]
    shown = [layers[path] for name in drawn for path in modules[name]]
    factor = moved_factor(layers.values())
    tops = (
        _top([value for layer in shown for value in (layer.error_before, layer.error_after)]),
        _top([moved(layer, factor) for layer in shown]),
    )
    return {name: _module_chart(name, modules[name], layers, tops=tops, with_after=with_after) for name in drawn}


def _module_chart(
    name: str,
    blocks: Mapping[str, int],
    layers: Mapping[str, LayerReport],
    *,
    tops: tuple[float, float],
    with_after: bool,
) -> Html:
    worst = max(blocks, key=lambda path: _finite_or_zero(layers[path].error_after))
    description = (
        f"{name}: error of the average in {len(blocks)} blocks; the largest, "
        f"{significant(layers[worst].error_after, 3)}, is in block {blocks[worst]}."
    )
    places, shown = list(blocks.values()), [layers[path] for path in blocks]
    if with_after:
        factor = moved_factor(layers.values())
        paint = partial(_paint_correction, blocks=places, layers=shown, tops=tops, factor=factor)
        return themed_svg(paint, height=250, description=description)
    paint = partial(_paint_errors, blocks=places, layers=shown, top=tops[0])
    return themed_svg(paint, height=170, description=description)


def _paint_correction(
    figure: "Figure",
    *,
    blocks: Sequence[int],
    layers: Sequence[LayerReport],
    tops: tuple[float, float],
    factor: str,
) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    before, after = [_finite(layer.error_before) for layer in layers], [_finite(layer.error_after) for layer in layers]
    upper.vlines(blocks, before, after, color=GREY, linewidth=1.5)
    size = _dot_size(blocks)
    upper.plot(blocks, before, "o", color=ORANGE, markerfacecolor=PAPER, markeredgewidth=1.8, markersize=1.5 * size)
    upper.plot(blocks, after, "o", color=BLUE, markersize=size)
    amount_axis(upper, tops[0])
    upper.set_ylabel("error")
    lower.bar(blocks, [_finite(moved(layer, factor)) for layer in layers], color=PURPLE, width=0.6)
    lower.set_ylim(0, tops[1])
    lower.set_ylabel(f"{factor} moved")
    _percent_labels(lower)
    _blocks_axis(lower, blocks)
    figure.align_ylabels()


def _paint_errors(figure: "Figure", *, blocks: Sequence[int], layers: Sequence[LayerReport], top: float) -> None:
    axes = figure.subplots()
    before = [_finite(layer.error_before) for layer in layers]
    axes.plot(blocks, before, "o", color=ORANGE, markersize=_dot_size(blocks))
    amount_axis(axes, top)
    axes.set_ylabel("error")
    _blocks_axis(axes, blocks)


def _dot_size(blocks: Sequence[int]) -> float:
    return 6 if len(blocks) <= 24 else 4


def _blocks_axis(axes: "Axes", blocks: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("block of the model")
    axes.set_xlim(min(blocks) - 0.6, max(blocks) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))


def _errors(reports: Sequence[RoundReport]) -> tuple[list[int], list[float], list[float]]:
    """Return the rounds that aggregated, and their errors before and after."""
    aggregated = [(report.round, report.aggregation) for report in reports if report.aggregation is not None]
    return (
        [at for at, _ in aggregated],
        [_finite(aggregation.error_before) for _, aggregation in aggregated],
        [_finite(aggregation.error_after) for _, aggregation in aggregated],
    )


def _percent_axis(axes: "Axes", values: Sequence[float]) -> None:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    axes.set_ylim(1.15 * min(0.0, *finite), 1.15 * max(0.0, *finite) or 0.01)
    _percent_labels(axes)


def _percent_labels(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def _top(values: Sequence[float]) -> float:
    return 1.12 * max((value for value in values if math.isfinite(value)), default=0.0) or 1.0


def _finite(value: float) -> float:
    """Return the value, or nan, which leaves a gap in a chart."""
    return value if math.isfinite(value) else math.nan


def _finite_or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
