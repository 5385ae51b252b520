"""One chart for all that runs over rounds, blocks or ranks: lines, dots and bars, in panels one below the other."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

from fedlora.server.report.content import Chart, Key
from fedlora.server.report.drawing import WIDTH, Colour, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more dots on a curve they would touch.
MOST_DOTS = 40


@dataclass(frozen=True)
class Series:
    """Values by place (round, block, rank); one that is not finite leaves a gap.

    Attributes:
        name: in the legend, where there is a value; "" leaves it out.
        width: of the line in points; 0 for dots alone.
        dot: their size in points; 0 for none.
        rings: the places whose dots are hollow.
        band: the lowest and the highest about the values.
        band_name: what the band is, in the legend; "" leaves it out.
    """

    name: str
    values: Mapping[int, float]
    colour: Colour
    width: float = 2.0
    dot: float = 6.0
    rings: Collection[int] = ()
    band: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    band_name: str = "lowest to highest"


@dataclass(frozen=True)
class Panel:
    """One or more series over a vertical axis.

    Attributes:
        axis: sets the vertical axis up for the values that it must reach.
        limits: of these in place of the series' own, where several charts have one scale.
        name: at the vertical axis.
        title: above, in the first series' colour.
        last_text: the last value of the first series in words, written beside it; that series stands in front.
        stems: the colour of lines from each of the first series' values to the second's.
        is_bars: whether the series are bars, one on top of the other.
        share: of the chart's height, relative to the other panels.
        is_percentage: whether the values are shares, told in percent.
    """

    series: Sequence[Series]
    axis: Callable[["Axes", Iterable[float]], None]
    limits: Sequence[float] = ()
    name: str = ""
    title: str = ""
    last_text: Callable[[float], str] | None = None
    stems: Colour | None = None
    is_bars: bool = False
    share: float = 1.0
    is_percentage: bool = False


@dataclass(frozen=True)
class SeriesChart(Chart):
    """A drawing of panels, which whoever draws it otherwise has as values.

    Attributes:
        places: what the horizontal axis counts.
        has_ticks: whether it tells their numbers.
        marked: places with words above them.
    """

    panels: Sequence[Panel] = ()
    places: str = "round"
    has_ticks: bool = True
    marked: Mapping[int, str] = field(default_factory=dict)


def series_chart(
    title: str,
    *panels: Panel,
    description: str,
    places: str = "round",
    has_ticks: bool = True,
    until: int | None = None,
    marked: Mapping[int, str] | None = None,
    height: int = 300,
    width: int = WIDTH,
) -> Chart:
    """Return the panels over one horizontal axis, a `SeriesChart`.

    Args:
        places: what the horizontal axis counts.
        has_ticks: whether it tells their numbers.
        until: its last place; without it the last that has a value.
        marked: places with a dashed line, and words above it.
    """
    found = [place for panel in panels for series in panel.series for place in series.values]
    last = max(found, default=0) if until is None else until
    first = min([*found, last])

    def paint(figure: "Figure") -> None:
        ratios = [panel.share for panel in panels]
        column = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, panel in zip(column, panels, strict=True):
            _paint_panel(axes, panel)
            for place, words in (marked or {}).items():
                _mark(axes, place, words)
        _name_places(column[-1], places, first, last, has_ticks=has_ticks)
        figure.align_ylabels()

    keys = [key for panel in panels for key in _keys(panel)]
    svg = partial(svg_of, paint, description=description, height=height, width=width)
    return SeriesChart(
        title, svg, width, height, description, keys, panels, places, has_ticks=has_ticks, marked=marked or {}
    )


def _keys(panel: Panel) -> Iterator[Key]:
    for series in panel.series:
        if panel.is_bars:
            shape = "square "
        else:
            shape = "ring " if set(series.rings) >= set(series.values) else "line " if series.width else ""
        if series.name and series.values:
            yield Key(f"{shape}{series.colour.style}", series.name)
        if series.band_name and any(low < high for low, high in series.band.values()):
            yield Key(f"band square {series.colour.style}", series.band_name)


def _paint_panel(axes: "Axes", panel: Panel) -> None:
    shown = [_with_gaps(series) for series in panel.series if series.values]
    if panel.is_bars:
        values = _paint_bars(axes, shown)
    else:
        for series in shown:
            _paint_line(axes, series, order=3 if panel.last_text and series is shown[0] else 2)
        values = [value for series in shown for value in series.values.values()]
        values += [end for series in shown for ends in series.band.values() for end in ends]
    if panel.last_text is not None and shown:
        _tell_last(axes, panel.last_text, shown[0])
    if panel.stems is not None:
        (before, after), places = (series.values for series in shown), list(shown[0].values)
        ends = [before[place] for place in places], [after[place] for place in places]
        thin = max(0.6, min(1.4, 200 / max(1, len(places))))
        axes.vlines(places, *ends, color=panel.stems, linewidth=thin, alpha=0.6, zorder=1.5)
    panel.axis(axes, panel.limits or values)
    _show_whole_dots(axes)
    axes.set_ylabel(panel.name)
    axes.set_title(panel.title, color=panel.series[0].colour)


def _with_gaps(series: Series) -> Series:
    values = {place: value if math.isfinite(value) else math.nan for place, value in series.values.items()}
    return replace(series, values=values)


def _paint_line(axes: "Axes", series: Series, *, order: int) -> None:
    places, values, colour = list(series.values), list(series.values.values()), series.colour
    if series.band:
        low, high = zip(*series.band.values(), strict=True)
        axes.fill_between(list(series.band), low, high, color=colour, alpha=0.16, linewidth=0)
        if len(series.band) == 1:
            axes.vlines(list(series.band), low, high, color=colour, alpha=0.4, linewidth=6)
    if series.width:
        axes.plot(places, values, color=colour, linewidth=series.width, zorder=order)
        dot = series.dot if len(places) <= MOST_DOTS else 0.0
    else:
        dot = max(2.0, series.dot * min(1.0, 60 / len(places)))
    for is_ring, size, fill in ((False, dot, colour), (True, dot and dot + 1, Colour.PAPER)):
        at = [place for place in places if (place in series.rings) == is_ring]
        axes.plot(
            at,
            [series.values[place] for place in at],
            "o",
            color=colour,
            markerfacecolor=fill,
            markeredgewidth=1.8 if is_ring else 1.0,
            markersize=size,
            zorder=order,
        )


def _show_whole_dots(axes: "Axes") -> None:
    """Let the dots on an edge stand over it; what lies beyond the axis stays cut off."""
    low, high = axes.get_ylim()
    for line in axes.lines:
        values = map(float, cast(Iterable[float], line.get_ydata()))
        line.set_clip_on(not all(low <= value <= high for value in values if math.isfinite(value)))
        line.set_in_layout(False)  # A line without points has a place all the same, which would be made room for.


def _tell_last(axes: "Axes", text: Callable[[float], str], series: Series) -> None:
    """Write the last value right of it, where no series and no mark is."""
    place = max(series.values)
    at, units = (place, series.values[place]), "offset points"
    axes.annotate(text(at[1]), at, (9, 0), textcoords=units, ha="left", va="center", weight="bold")


def _paint_bars(axes: "Axes", stacked: Sequence[Series]) -> list[float]:
    """Return the values that the bars reach."""
    reached: dict[int, float] = {}
    for series in stacked:
        below = [reached.get(place, 0.0) for place in series.values]
        axes.bar(list(series.values), list(series.values.values()), bottom=below, color=series.colour, width=0.6)
        reached |= {place: reached.get(place, 0.0) + value for place, value in series.values.items()}
    return list(reached.values())


def _mark(axes: "Axes", place: int, words: str) -> None:
    axes.axvline(place, color=Colour.QUIET, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    at, units = (place, 1), "offset points"
    axes.annotate(words, at, (0, 3), ("data", "axes fraction"), units, color=Colour.QUIET, ha="center", va="bottom")


def _name_places(axes: "Axes", name: str, first: int, last: int, *, has_ticks: bool) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator

    axes.set_xlabel(name)
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1) if has_ticks else NullLocator())
