"""Rows of a chart that are named after variants, each as high as its label."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedlora.comparison.results import Variant
from fedlora.comparison.wording import variant_lines
from fedlora.server.report.drawing import Colour, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_HEIGHT = 14

# What the horizontal axis with its name takes.
AXIS_HEIGHT = 46

_LABEL_LENGTH = 22


def variant_label(variant: Variant) -> str:
    """Return a variant's name for the side of a chart."""
    return "\n".join(short(line, length=_LABEL_LENGTH) for line in variant_lines(variant))


def name_rows(axes: "Axes", variants: Sequence[Variant]) -> list[float]:
    """Name rows from above, each as high as its label, and return their places."""
    places, edge = [], 0.0
    for variant in variants:
        size = label_height(variant_label(variant))
        places.append(edge + size / 2)
        edge += size
    axes.set_yticks(places, [variant_label(variant) for variant in variants])
    axes.tick_params(axis="y", labelcolor=Colour.INK, pad=6)
    axes.set_ylim(edge, 0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    return places


def label_height(label: str) -> int:
    return LINE_HEIGHT * (1 + label.count("\n")) + 12


def rows_height(variants: Sequence[Variant]) -> int:
    return AXIS_HEIGHT + sum(label_height(variant_label(variant)) for variant in variants)
