"""Charts of where the time went: wall time by round, and the clients' own time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedlora.server.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    amount_axis,
    rounds_axis,
    short,
    themed_svg,
)
from fedlora.server.report.markup import Html
from fedlora.server.report.numbers import client_seconds, round_seconds, wall_seconds
from fedlora.server.report.wording import duration_text, share_text
from fedlora.server.round_report import RoundReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By phase: its colour here, and the class of the same colour in page.css.
_COLOURS = {
    "training": (BLUE, "blue"),
    "aggregation": (ORANGE, "orange"),
    "evaluation": (GREEN, "green"),
    "storing": (PURPLE, "purple"),
}
_OTHER = (GREY, "grey")


def phase_keys(reports: Sequence[RoundReport]) -> list[tuple[str, str]]:
    """Return the legend of `time_by_round`: each phase's colour class and its name."""
    return [(_COLOURS.get(phase, _OTHER)[1], phase) for phase in wall_seconds(reports)]


def time_by_round(reports: Sequence[RoundReport], *, description: str) -> Html:
    """Return wall time by round, its phases stacked."""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        rounds = [report.round for report in reports]
        below = [0.0] * len(rounds)
        unit, unit_name = _unit(max(round_seconds(report) for report in reports))
        for phase in wall_seconds(reports):
            times = [report.seconds.get(phase, 0.0) / unit for report in reports]
            axes.bar(rounds, times, bottom=below, color=_COLOURS.get(phase, _OTHER)[0], width=0.7)
            below = [low + height for low, height in zip(below, times, strict=True)]
        amount_axis(axes, 1.05 * max(below) or 1.0)
        axes.set_ylabel(unit_name)
        rounds_axis(axes, rounds[0], rounds[-1])

    return themed_svg(paint, height=300, description=description)


def time_in_clients(reports: Sequence[RoundReport], *, description: str) -> Html:
    """Return the clients' time by phase, summed over clients and rounds."""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        phases = client_seconds(reports)
        total = sum(phases.values())
        places = range(len(phases))
        unit, unit_name = _unit(max(phases.values()))
        axes.barh(places, [seconds / unit for seconds in phases.values()], color=BLUE, height=0.55)
        for place, seconds in zip(places, phases.values(), strict=True):
            axes.annotate(
                f"{duration_text(seconds)}  ({share_text(seconds / total)})",
                (seconds / unit, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(places, [short(_PHASE_WORDS.get(phase, phase)) for phase in phases])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(max(len(phases), 3) - 0.4, -0.6)
        axes.set_xlim(0, 1.45 * max(phases.values()) / unit)
        axes.set_xlabel(f"{unit_name}, summed over clients and rounds", color=QUIET)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)

    return themed_svg(paint, height=300, description=description)


_PHASE_WORDS = {
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "optimiser",
    "other": "rest of training",
    "validation": "validation",
}


def _unit(most_seconds: float) -> tuple[int, str]:
    """Return the unit in which an axis up to so many seconds reads best: its length in seconds and its name."""
    if most_seconds >= 3 * 3600:
        return 3600, "hours"
    return (60, "minutes") if most_seconds >= 300 else (1, "seconds")
