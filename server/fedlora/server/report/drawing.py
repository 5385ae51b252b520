"""Charts as inline SVG that follows the page's theme.

matplotlib paints with stand-in colours; in the SVG each becomes a CSS variable of page.css, so that one drawing
serves light and dark. Text stays text, in the page's font.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from fedlora.server.report.content import Chart, Key
from fedlora.server.report.wording import PERPLEXITY, is_percentage, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Colour(StrEnum):
    """Stand-ins for the page's colours, by their names in page.css."""

    INK = "#1a0001"
    QUIET = "#1a0002"
    GRID = "#1a0003"
    BLUE = "#1a0004"
    ORANGE = "#1a0005"
    GREEN = "#1a0006"
    PURPLE = "#1a0007"
    GREY = "#1a0008"
    PAPER = "#1a0009"

    @property
    def style(self) -> str:
        """Return the colour's name in page.css."""
        return self.name.lower()


# Half of the page's width in CSS pixels, so that a drawing is shown near its own size on a phone as well.
WIDTH = 420

# From so many times the smallest value on, perplexities stand on a logarithmic axis.
_WIDE = 8

# Of an axis's length, what a dot on its end needs.
_ROOM_FOR_A_DOT = 0.04

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # A dollar in a client's name is a dollar.
    "font.size": 11.5,
    "text.color": Colour.INK,
    "axes.facecolor": "none",
    "axes.edgecolor": Colour.GRID,
    "axes.labelcolor": Colour.QUIET,
    "axes.labelsize": 11.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": Colour.GRID,
    "grid.linewidth": 0.8,
    "xtick.color": Colour.GRID,
    "ytick.color": Colour.GRID,
    "xtick.labelcolor": Colour.QUIET,
    "ytick.labelcolor": Colour.QUIET,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def draw(
    paint: Callable[["Figure"], None],
    *,
    title: str,
    description: str,
    keys: Sequence[Key] = (),
    height: int,
    width: int = WIDTH,
) -> Chart:
    """Return what `paint` draws on so many CSS pixels."""
    svg = partial(svg_of, paint, description=description, height=height, width=width)
    return Chart(title, svg, width, height, description, keys)


def svg_of(paint: Callable[["Figure"], None], *, description: str, height: int, width: int) -> str:
    """Return what `paint` draws on so many CSS pixels, as it stands inside of an SVG element."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Only the layout needs the glyph, and gets a box in its place; the browser has its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcParams["svg.hashsalt"] = description  # Ids must differ between the drawings of one page.
        drawing = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        paint(drawing)
        FigureCanvasSVG(drawing)
        # A drawing that has a layout is drawn twice to be saved.
        ConstrainedLayoutEngine().execute(drawing)
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    return _themed(buffer.getvalue())


def _themed(svg: str) -> str:
    """Return what is inside of the SVG element, in the page's colours."""
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|\w*Collection)_\d+"', "", body)
    for colour in Colour:
        body = body.replace(colour, f"var(--{colour.style})")
    return body[body.index(">") + 1 : body.rindex("</svg>")].strip()


def amount_axis(axes: "Axes", values: Iterable[float]) -> None:
    """Let the vertical axis show amounts, from zero."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(0, 1.08 * max(filter(math.isfinite, values), default=0.0) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def percent_axis(axes: "Axes", values: Iterable[float]) -> None:
    """Let the vertical axis show shares in percent, zero among them."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    finite = [0.0, *filter(math.isfinite, values)]
    axes.set_ylim(1.15 * min(finite), 1.15 * max(finite) or 0.01)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))


def score_axis(axes: "Axes", values: Iterable[float], *, metric_name: str, horizontal: bool = False) -> None:
    """Let an axis show the metric, wide enough for the values.

    For accuracy it tells 0 to 100 % at most, with room for a whole dot at either; for perplexities that span much it is
    logarithmic.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    finite = list(filter(math.isfinite, values)) or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if metric_name == PERPLEXITY and high > _WIDE * low > 0:
        _logarithmic_axis(axes, low, high, horizontal=horizontal)
        return
    axis = axes.xaxis if horizontal else axes.yaxis
    pad = max(0.08 * (high - low), 0.02)
    ends = (low - pad, high + pad)
    locator = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
    if is_percentage(metric_name):
        told = max(0.0, 0.0 if ends[0] < 0.2 else ends[0]), min(1.0, ends[1])
        room = _ROOM_FOR_A_DOT * (told[1] - told[0])
        ends = min(told[0], max(low, 0.0) - room), max(told[1], min(high, 1.0) + room)
        ticks = locator.tick_values(*told)
        axis.set_major_locator(FixedLocator([tick for tick in ticks if told[0] <= tick <= told[1]]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    else:
        axis.set_major_locator(locator)
    (axes.set_xlim if horizontal else axes.set_ylim)(*ends)


def _logarithmic_axis(axes: "Axes", low: float, high: float, *, horizontal: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if horizontal else axes.yaxis
    (axes.set_xscale if horizontal else axes.set_yscale)("log")
    pad = (high / low) ** 0.08
    (axes.set_xlim if horizontal else axes.set_ylim)(low / pad, high * pad)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else significant(value, 1)))


def rows_axis(axes: "Axes", names: Sequence[str], *, least: int = 2) -> None:
    """Let the vertical axis name rows from above, with room for at least so many, and grid lines across them."""
    axes.set_yticks(range(len(names)), [short(name or "(no name)") for name in names])
    axes.tick_params(axis="y", labelcolor=Colour.INK, pad=6)
    axes.set_ylim(max(len(names), least) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)


def paint_bars(
    axes: "Axes",
    names: Sequence[str],
    stacked: Mapping[Colour, Sequence[float]],
    words: Sequence[str],
    *,
    least: int = 2,
) -> None:
    """Draw a bar in each named row, stacked of colours, with words at its end."""
    ends = [0.0] * len(names)
    for colour, lengths in stacked.items():
        axes.barh(range(len(names)), lengths, left=ends, color=colour, height=0.6)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for row, (end, text) in enumerate(zip(ends, words, strict=True)):
        write_beside(axes, text, (end, row))
    rows_axis(axes, names, least=least)


def write_beside(axes: "Axes", text: str, at: tuple[float, float], *, is_left: bool = False) -> None:
    """Write a value beside the end of its row."""
    place, side = (-9, "right") if is_left else (7, "left")
    axes.annotate(text, at, xytext=(place, 0), textcoords="offset points", ha=side, va="center")


def short(name: str, *, length: int = 18) -> str:
    """Return a name for a chart's label: on one line, and without its middle where it is too long."""
    name = " ".join(name.split())
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"
