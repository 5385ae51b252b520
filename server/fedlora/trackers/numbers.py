"""The numbers of a round that trackers keep, by name. Pure."""

import math
from collections.abc import Iterator, Mapping

from fedlora.server.record.best_round import scores_in
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import mean_loss, round_seconds


def numbers_of(report: RoundReport, before: RoundReport | None) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield what is known with a round's end, as pairs of a round and its numbers.

    How good an adapter is on the clients' validation is known with the round after it, and of the last one at once.

    Args:
        before: the round before, if there was one.
    """
    scores = scores_in(report)
    if before is not None and before.validation is None and (score := scores.get(before.round)) is not None:
        yield before.round, {"validation/loss": score.loss, "validation/metric": score.metric}
    found: dict[str, float] = {
        "updates/accepted": len(report.clients),
        "updates/refused": len(report.refused),
        "bytes/down": report.bytes_down,
        "bytes/up": report.bytes_up,
        "seconds/round": round_seconds(report),
    }
    found |= {f"seconds/{phase}": seconds for phase, seconds in report.seconds.items()}
    if report.clients and not math.isnan(loss := mean_loss(report)):  # Sites may keep theirs.
        found["train/loss"] = loss
    if report.epsilon is not None:
        found["privacy/epsilon"] = report.epsilon
    if report.aggregation is not None:
        found |= {"error/before": report.aggregation.error_before, "error/after": report.aggregation.error_after}
    if report.held_out is not None:
        found |= {"held_out/loss": report.held_out.overall.loss, "held_out/metric": report.held_out.overall.metric}
        found |= {f"held_out/metric/{group}": score.metric for group, score in report.held_out.groups.items()}
    if report.validation is not None:
        found |= {"validation/loss": report.validation.loss, "validation/metric": report.validation.metric}
    yield report.round, found


def flat_settings(sections: Mapping[str, object], *, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return the settings of nested sections by `section.key`; what is no plain value is given as text."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in sections.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat_settings(value, prefix=f"{name}.")
        elif value is not None:
            found[name] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
