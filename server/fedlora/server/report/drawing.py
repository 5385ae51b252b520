"""Charts as inline SVG that follows the page's theme.

matplotlib paints with stand-in colours; in the SVG each becomes a CSS variable of page.css, so that one drawing
serves light and dark. Text stays text, in the page's font.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fedlora.server.report.markup import Html, escape, trusted
from fedlora.server.report.wording import PERPLEXITY, is_percentage, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1a0001", "#1a0002", "#1a0003"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#1a0004", "#1a0005", "#1a0006", "#1a0007", "#1a0008"
PAPER = "#1a0009"
_VARIABLES = {
    INK: "ink",
    QUIET: "quiet",
    GRID: "grid",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    GREY: "grey",
    PAPER: "paper",
}

# Half of the page's width in CSS pixels, so that a drawing is shown near its own size on a phone as well.
WIDTH = 420

# With more dots on a curve they would touch.
MOST_DOTS = 40

# From so many times the smallest value on, perplexities stand on a logarithmic axis.
_WIDE = 8

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # A dollar in a client's name is a dollar.
    "font.size": 11.5,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "ytick.major.size": 0,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


def themed_svg(paint: Callable[["Figure"], None], *, height: int, description: str, width: int = WIDTH) -> Html:
    """Return what `paint` draws as an SVG element of so many CSS pixels, described for screen readers."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Only the layout needs the glyph, and gets a box in its place; the browser has its own fonts.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcParams["svg.hashsalt"] = description  # Ids must differ between the drawings of one page.
        drawing = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor="none")
        paint(drawing)
        drawing.savefig(buffer, format="svg", metadata={"Date": None})
    return trusted(_themed(buffer.getvalue(), size=(width, height), description=description))


def _themed(svg: str, *, size: tuple[int, int], description: str) -> str:
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|\w*Collection)_\d+"', "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    opening = f'<svg class="chart" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(description)}">'
    return opening + body[body.index(">") + 1 :].strip()


def rounds_axis(axes: "Axes", first: int, last: int) -> None:
    """Let the horizontal axis count rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))


def amount_axis(axes: "Axes", top: float) -> None:
    """Let the vertical axis show an amount, from zero."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(0, top)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def mark_round(axes: "Axes", at: int, words: str) -> None:
    """Mark a round by a dashed line, with words above it."""
    axes.axvline(at, color=QUIET, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)
    place, points = (at, 1), "offset points"
    axes.annotate(words, place, (0, 3), ("data", "axes fraction"), points, color=QUIET, ha="center", va="bottom")


def score_axis(axes: "Axes", values: list[float], metric_name: str, *, horizontal: bool = False) -> None:
    """Let an axis show the metric, wide enough for the values.

    For accuracy it is no wider than 0 to 100 %; for perplexities that span much it is logarithmic.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if metric_name == PERPLEXITY and values and max(values) > _WIDE * min(values) > 0:
        _logarithmic_axis(axes, min(values), max(values), horizontal=horizontal)
        return
    axis = axes.xaxis if horizontal else axes.yaxis
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    pad = max(0.08 * (high - low), 0.02)
    low, high = low - pad, high + pad
    if is_percentage(metric_name):
        low, high = max(0.0, 0.0 if low < 0.2 else low), min(1.0, high)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    (axes.set_xlim if horizontal else axes.set_ylim)(low, high)


def _logarithmic_axis(axes: "Axes", low: float, high: float, *, horizontal: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if horizontal else axes.yaxis
    (axes.set_xscale if horizontal else axes.set_yscale)("log")
    pad = (high / low) ** 0.08
    (axes.set_xlim if horizontal else axes.set_ylim)(low / pad, high * pad)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else significant(value, 1)))


def dot_size(num_dots: int) -> float:
    """Return a marker's size, 0 where there would be too many."""
    return 6 if num_dots <= MOST_DOTS else 0


def short(name: str, *, length: int = 18) -> str:
    """Return a name for a chart's label: on one line, and without its middle where it is too long."""
    name = " ".join(name.split())
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"
