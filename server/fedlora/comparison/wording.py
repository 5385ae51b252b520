"""Differences, intervals and p values as people read them; ASCII, for a terminal shows them too."""

import math
from collections.abc import Mapping

from fedlora.comparison.results import Variant
from fedlora.comparison.statistics import Interval, Sample
from fedlora.server.report.wording import PERPLEXITY, UNKNOWN, is_percentage, score_text, significant

_LOWER_IS_BETTER = ("loss", "perplexity", "error")


def settings_text(settings: Mapping[str, str]) -> str:
    """Return settings as they would be typed, one after another."""
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def variant_lines(variant: Variant) -> list[str]:
    """Return a variant's name for a narrow place: the method, then a line for each setting, without its section.

    Settings that it has chosen are in no name.
    """
    lines = [variant.method]
    for key, value in variant.settings.items():
        if key not in variant.chosen:
            without_quotes = value.strip('"')
            lines.append(f"{key.partition('.')[2]} {without_quotes}")
    return lines


def is_lower_better(metric_name: str) -> bool:
    """Return whether less of the metric is better, as its last word says: of a loss, a perplexity and an error."""
    return metric_name.endswith(_LOWER_IS_BETTER)


def better_if(metric_name: str) -> str:
    """Return which of two values of the metric is the better one, in a word."""
    return "lower" if is_lower_better(metric_name) else "higher"


def unit_of(metric_name: str) -> str:
    """Return what a difference is counted in: points of an accuracy, else the metric's own name."""
    return "points" if is_percentage(metric_name) else metric_name


def with_unit(amount: str, metric_name: str) -> str:
    """Return an amount as a part of a sentence."""
    return f"{amount} {'' if is_percentage(metric_name) else 'in '}{unit_of(metric_name)}"


def mean_text(values: Sample | None, metric_name: str) -> str:
    return UNKNOWN if values is None else score_text(values.mean, metric_name)


def amount_text(value: float | None, metric_name: str) -> str:
    """Return a difference without its sign: points of an accuracy with one digit behind the point."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if is_percentage(metric_name):
        return f"{100 * value:.1f}"
    return significant(value, 3) if metric_name == PERPLEXITY else f"{value:.3f}"


def signed_text(value: float | None, metric_name: str) -> str:
    """Return a difference with its sign."""
    text = amount_text(value, metric_name)
    return text if text.startswith("-") else f"+{text}"


def interval_text(interval: Interval | None, metric_name: str, *, is_signed: bool = True) -> str:
    """Return an interval's ends in brackets."""
    if interval is None:
        return "none"
    to_text = signed_text if is_signed else amount_text
    return f"[{to_text(interval.low, metric_name)}, {to_text(interval.high, metric_name)}]"


def p_text(p: float) -> str:
    """Return a p value with two significant digits; below a thousandth only that it is."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def of_runs_text(values: Sample | None, num_runs: int, *, digits: int = 3) -> str:
    """Return a mean, and of how many of the runs it is where not of all; "never" of none."""
    if values is None:
        return "never" if num_runs else UNKNOWN
    text = significant(values.mean, digits)
    return text if values.num == num_runs else f"{text} ({values.num} of {num_runs})"
