"""Comparisons of made-up runs, to see what is said of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.comparison.results import Comparison, Course, RunResult, Variant

BASELINE = "fedit"
LAYERS = tuple(f"encoder.layer.{block}.attention.{module}" for block in range(2) for module in ("query", "value"))

# How far apart the draws are, whatever runs on them.
_OF_DRAWS = (0.05, -0.04, 0.01, -0.02, 0.06, -0.06, 0.03, 0.0, -0.01, 0.02)


def run(variant: str, draw: int, metric: float, **changes: Any) -> RunResult:
    """Return a run over two rounds that ends with this metric; `changes` are fields of it, `course` of its course."""
    course: dict[str, Any] = {
        "metric": (0.1, metric - 0.1, metric),
        "loss": (2.0, 1.5, 1.0),
        "validation": (2.0, 1.6, 1.1),
        "megabytes": (0.0, 2.0, 4.0),
        "error_before": (math.nan, 0.3, 0.2),
        "error_after": (math.nan, 0.3, 0.2),
    }
    fields: dict[str, Any] = {
        "groups": {"mnist": metric + 0.1, "serif": metric - 0.1},
        "clients": {"client-0": metric + 0.2, "client-1": metric - 0.2},
        "layer_errors": dict.fromkeys(LAYERS, (0.2, 0.1)),
        "client_seconds": 20.0,
        "server_seconds": 2.0,
    }
    return RunResult(
        variant,
        draw,
        f"runs/{variant}/{draw}",
        Course(**(course | dict(changes.pop("course", {})))),
        **(fields | changes),
    )


def runs_of(variant: str, lead: float, *, num_draws: int = 10, spread: float = 0.01) -> list[RunResult]:
    """Return a run for each draw that is better than the baseline's by `lead` on the mean, now more and now less."""
    noise = [spread * (-1) ** draw if draw < num_draws // 2 * 2 else 0.0 for draw in range(num_draws)]
    return [run(variant, draw, 0.5 + _OF_DRAWS[draw] + lead + noise[draw]) for draw in range(num_draws)]


def comparison(
    leads: Mapping[str, float],
    *,
    num_draws: int = 10,
    spread: float = 0.01,
    extra: Sequence[RunResult] = (),
    **changes: Any,
) -> Comparison:
    """Return the baseline and others that are better than it by so much; `extra` runs replace those of their draw."""
    found = {(each.variant, each.draw): each for each in runs_of(BASELINE, 0.0, num_draws=num_draws, spread=0.0)}
    for name, lead in leads.items():
        found |= {(name, each.draw): each for each in runs_of(name, lead, num_draws=num_draws, spread=spread)}
    found |= {(each.variant, each.draw): each for each in extra}
    fields: dict[str, Any] = {
        "title": "digits",
        "metric_name": "accuracy",
        "baseline": BASELINE,
        "num_draws": num_draws,
        "variants": tuple(Variant(name, name.split(",")[0]) for name in (BASELINE, *leads)),
        "runs": tuple(found.values()),
        "command": "fedlora compare digits.toml --methods fedit,flora",
    }
    return Comparison(**(fields | changes))
