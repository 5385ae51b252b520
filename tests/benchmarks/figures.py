"""A measured figure with its repeats and its goal, as a row of a table and as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """What a figure's median is to reach: at most, or at least, `limit`."""

    relation: str
    limit: float

    def is_reached(self, median: float) -> bool:
        """Return whether `median` is on the right side of the limit, or on it."""
        return median <= self.limit if self.relation == "at most" else median >= self.limit


def at_most(limit: float) -> Goal:
    """Return the goal of staying at or below `limit`."""
    return Goal("at most", limit)


def at_least(limit: float) -> Goal:
    """Return the goal of being at or above `limit`."""
    return Goal("at least", limit)


@dataclass(frozen=True)
class Figure:
    """One measured quantity: every repeat of it, in the order they were taken."""

    name: str
    unit: str
    repeats: Sequence[float]
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """Return the median of the repeats."""
        return statistics.median(self.repeats)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Return the first and the third quartile; of a single repeat, itself twice."""
        if len(self.repeats) == 1:
            return self.repeats[0], self.repeats[0]
        first, _, third = statistics.quantiles(self.repeats, n=4, method="inclusive")
        return first, third

    @property
    def verdict(self) -> str:
        """Return "reached" or "NOT reached"; nothing without a goal."""
        if self.goal is None:
            return ""
        return "reached" if self.goal.is_reached(self.median) else "NOT reached"

    def to_json(self, benchmark: str) -> dict[str, object]:
        """Return the figure as an object of benchmarks.json."""
        goal = self.goal
        return {
            "benchmark": benchmark,
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "quartiles": list(self.quartiles),
            "repeats": list(self.repeats),
            "goal": None if goal is None else {goal.relation.replace(" ", "_"): goal.limit},
            "goal_reached": None if goal is None else goal.is_reached(self.median),
        }


def table_of(title: str, figures: Sequence[Figure]) -> Table:
    """Return the figures as a table for the terminal, each goal beside what was found."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("figure", min_width=30)
    for heading in ("median", "quartiles"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("repeats", justify="right", no_wrap=True)
    table.add_column("goal", min_width=13)
    for figure in figures:
        first, third = figure.quartiles
        goal = "" if figure.goal is None else f"{figure.goal.relation} {figure.goal.limit:g}: {figure.verdict}"
        style = "bold red" if figure.verdict == "NOT reached" else None
        table.add_row(
            figure.name,
            shown(figure.median),
            f"{shown(first)} - {shown(third)}" if len(figure.repeats) > 1 else "",
            figure.unit,
            str(len(figure.repeats)),
            goal,
            style=style,
        )
    return table


def shown(value: float) -> str:
    """Return `value` with three significant digits, or all those before the point, without an exponent."""
    if value == 0:
        return "0"
    digits_after_point = next((digits for digits in range(3) if abs(value) >= 10 ** (2 - digits)), 3)
    return f"{value:.{digits_after_point}f}" if abs(value) >= 0.001 else f"{value:.1e}"
