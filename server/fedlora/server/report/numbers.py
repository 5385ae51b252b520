"""The numbers that a report and a terminal show, drawn from the round reports. Pure."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from fedlora.common.aggregation_report import AggregationReport, LayerReport
from fedlora.common.messages import Generated, Score
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport
from fedlora.server.record.totals import is_of_tokens, weighted_mean
from fedlora.server.report.wording import PERPLEXITY, score_text

WALL_PHASES = ("training", "aggregation", "evaluation", "storing")
CLIENT_PHASES = ("forward", "backward", "optimizer")

Measure = Callable[[Score], float]
Known = TypeVar("Known")
Judged = TypeVar("Judged", Score, Generated)


@dataclass(frozen=True)
class Gain:
    """A metric before and after; None where it was not judged.

    Attributes:
        name: of the group or client, or a description of them all.
        num_examples: that the later score was taken from.
    """

    name: str
    num_examples: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Spread:
    """The lowest, mean and highest of the clients' scores in one round, and who had the two ends."""

    round: int
    lowest: float
    mean: float
    highest: float
    lowest_client: str
    highest_client: str


@dataclass(frozen=True)
class Refusals:
    """The rounds in which one client's update was refused for one code, and the latest reason in full."""

    client: str
    reason: str
    rounds: tuple[int, ...]


def metric_of(score: Score) -> float:
    """Return the score's metric, the measure that is meant where none is named."""
    return score.metric


def loss_of(score: Score) -> float:
    """Return the score's loss."""
    return score.loss


def perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss per token, which is its exponential."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def perplexity_of(score: Score) -> float:
    """Return the score's perplexity."""
    return perplexity(score.loss)


def perplexity_text(score: Score | None) -> str:
    """Return the perplexity of a score over tokens in words; of any other nothing is known."""
    return score_text(perplexity_of(score) if score is not None and score.num_tokens > 0 else None, PERPLEXITY)


def as_perplexity(gain: Gain) -> Gain:
    """Return the gain in perplexity of a gain in loss per token."""
    before, after = (None if loss is None else perplexity(loss) for loss in (gain.before, gain.after))
    return replace(gain, before=before, after=after)


def held_outs(reports: Iterable[RoundReport]) -> dict[int, HeldOutReport]:
    """Return what the held-out set said by round, where it was judged."""
    return {report.round: report.held_out for report in reports if report.held_out is not None}


def first_and_last(tables: Sequence[Mapping[str, Judged]], of: Callable[[Judged], float]) -> list[Gain]:
    """Return each name's first and last score, of tables by name in the order of their rounds."""
    if not tables:
        return []
    first, last = tables[0], tables[-1] if tables[1:] else {}
    return [
        Gain(name, score.num_examples, *(of(scores[name]) if name in scores else None for scores in (first, last)))
        for name, score in {**first, **last}.items()
    ]


def overall_gain(reports: Sequence[RoundReport], of: Measure = metric_of) -> Gain | None:
    """Return the first and the last overall score on the held-out set; None where there is none."""
    tables = [{"all examples": held_out.overall} for held_out in held_outs(reports).values()]
    return next(iter(first_and_last(tables, of)), None)


def group_gains(reports: Sequence[RoundReport], of: Measure = metric_of) -> list[Gain]:
    """Return the first and the last held-out score of each group, in the report's order."""
    return first_and_last([held_out.groups for held_out in held_outs(reports).values()], of)


def total_gains(reports: Sequence[RoundReport], of: Measure = metric_of) -> list[Gain]:
    """Return the held-out scores over all examples, below their mean over groups where the metric's differs.

    So there are as many of any measure as of the metric, beside which it may be shown.
    """
    overall = overall_gain(reports, of)
    if overall is None:
        return []
    return [mean_gain(group_gains(reports, of)), overall] if _groups_differ(reports) else [overall]


def mean_gain(gains: Sequence[Gain], *, noun: str = "group") -> Gain:
    """Return the plain mean over groups or clients, each counting the same; what one lacks, the mean lacks."""
    return Gain(
        f"mean of the {noun}s",
        sum(gain.num_examples for gain in gains),
        _mean_or_none([gain.before for gain in gains]),
        _mean_or_none([gain.after for gain in gains]),
    )


def by_client(
    reports: Iterable[RoundReport], of: Callable[[ClientReport], Known | None]
) -> dict[str, dict[int, Known]]:
    """Return what is known of each client by round, in the names' order."""
    found: dict[str, dict[int, Known]] = {}
    for report in reports:
        for name, client in report.clients.items():
            if (value := of(client)) is not None:
                found.setdefault(name, {})[report.round] = value
    return dict(sorted(found.items()))


def client_gains(reports: Sequence[RoundReport], of: Measure = metric_of) -> list[Gain]:
    """Return each client's score on its own validation examples, before its first and after its last training."""
    first = {name: of(next(iter(scores.values()))) for name, scores in by_client(reports, lambda c: c.before).items()}
    last = {name: scores[max(scores)] for name, scores in by_client(reports, lambda c: c.after).items()}
    return [Gain(name, score.num_examples, first.get(name), of(score)) for name, score in last.items()]


def by_measure(
    reports: Iterable[RoundReport], metric_name: str, find: Callable[[Measure], list[Gain]]
) -> dict[str, list[Gain]]:
    """Return what is found by the metric, and of a language model by perplexity too, under the measure's name."""
    found = {metric_name: find(metric_of)}
    return found | {PERPLEXITY: list(map(as_perplexity, find(loss_of)))} if is_of_tokens(reports) else found


def client_spread(report: RoundReport) -> Spread | None:
    """Return the spread of the clients' own validation after training; None where none has validation."""
    scores = {
        name: client.after.metric
        for name, client in report.clients.items()
        if client.after is not None and math.isfinite(client.after.metric)
    }
    if not scores:
        return None
    low, high = min(scores, key=lambda name: scores[name]), max(scores, key=lambda name: scores[name])
    mean = weighted_mean((report.clients[name].num_examples, score) for name, score in scores.items())
    return Spread(report.round, scores[low], mean, scores[high], low, high)


def is_corrected(reports: Iterable[RoundReport]) -> bool:
    """Return whether the method changed plain averaging in any round."""
    aggregations = [report.aggregation for report in reports if report.aggregation is not None]
    return any(each.moved_B > 0 or each.moved_A > 0 or each.error_after != each.error_before for each in aggregations)


def moved_factor(measured: Iterable[AggregationReport | LayerReport]) -> str:
    """Return which factor a method moves from its mean, "A" or "B": the one that moved more where both did."""
    pairs = [(each.moved_B, each.moved_A) for each in measured]
    by_factor = {
        "B": sum(moved_B for moved_B, _ in pairs if math.isfinite(moved_B)),
        "A": sum(moved_A for _, moved_A in pairs if math.isfinite(moved_A)),
    }
    return max(by_factor, key=by_factor.__getitem__)


def moved(measured: AggregationReport | LayerReport, factor: str) -> float:
    """Return how far a method moved a factor, of its mean's norm."""
    return measured.moved_A if factor == "A" else measured.moved_B


def wall_seconds(reports: Iterable[RoundReport]) -> dict[str, float]:
    """Return wall time by phase over all rounds, the known phases first, in their order in a round."""
    return _in_order(_total(report.seconds for report in reports), WALL_PHASES)


def client_seconds(reports: Iterable[RoundReport]) -> dict[str, float]:
    """Return the clients' time by phase, summed over clients and rounds; `other` is training beside its phases."""
    total = _total(client.seconds for report in reports for client in report.clients.values())
    validation, training = total.pop("validation", 0.0), total.pop("training", 0.0)
    total.pop("answered", None)  # All of it and the way, no phase.
    other = max(0.0, training - sum(total.values()))
    return _in_order(total, CLIENT_PHASES) | _in_order({"other": other, "validation": validation}, ())


def refusals(reports: Iterable[RoundReport]) -> list[Refusals]:
    """Return the updates refused, by client and code."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for report in reports:
        for client, reason in report.refused.items():
            found.setdefault((client, reason.partition(":")[0]), {})[report.round] = reason
    return [Refusals(client, rounds[max(rounds)], tuple(rounds)) for (client, _), rounds in sorted(found.items())]


def loss_range(clients: Mapping[str, ClientReport]) -> tuple[float, float]:
    """Return the lowest and the highest finite training loss; nan without any."""
    losses = [client.loss for client in clients.values() if math.isfinite(client.loss)]
    return (min(losses), max(losses)) if losses else (math.nan, math.nan)


def _groups_differ(reports: Sequence[RoundReport]) -> bool:
    """Return whether the metric's mean over groups is another than that over all examples."""
    overall, groups = overall_gain(reports), group_gains(reports)
    if overall is None or len(groups) < 2:
        return False
    mean = mean_gain(groups)
    pairs = (mean.before, overall.before), (mean.after, overall.after)
    return not all(a == b or (a and b and math.isclose(a, b, abs_tol=1e-6)) for a, b in pairs)


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _total(tables: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for table in tables:
        total.update(table)
    return dict(total)


def _in_order(table: Mapping[str, float], first: Sequence[str]) -> dict[str, float]:
    """Return the table's amounts above zero, those of the names that come first before the others."""
    names = [*first, *sorted(set(table) - set(first))]
    return {name: table[name] for name in names if table.get(name, 0.0) > 0}
