"""What a round's report comes to: sums and means over its clients. Pure."""

import math
from collections.abc import Iterable, Iterator

from fedlora.common.messages import Score
from fedlora.server.record.fair_shares import capped
from fedlora.server.record.round_report import RoundReport


def trained(reports: Iterable[RoundReport]) -> list[RoundReport]:
    """Return the reports of rounds in which clients trained: all but the start."""
    return [report for report in reports if report.round > 0]


def is_of_tokens(reports: Iterable[RoundReport]) -> bool:
    """Return whether scores are means over tokens, as a language model's are."""
    return any(score.num_tokens > 0 for report in reports for score in _scores(report))


def mean_loss(report: RoundReport) -> float:
    """Return the clients' mean training loss by their number of examples; nan where a client's is, or without any.

    The losses per token of a language model are weighted by the tokens that they are means over. No client's weight is
    more than `capped` allows.
    """
    of_tokens = all(client.num_tokens > 0 for client in report.clients.values())
    weights = capped(
        {name: client.num_tokens if of_tokens else client.num_examples for name, client in report.clients.items()}
    )
    return weighted_mean((weights[name], client.loss) for name, client in report.clients.items())


def round_seconds(report: RoundReport) -> float:
    """Return a round's wall time, the sum of its phases."""
    return sum(report.seconds.values())


def run_seconds(reports: Iterable[RoundReport], worked: float) -> float:
    """Return the wall time of a run: that of the processes that have worked on it, at least that of its rounds.

    Args:
        worked: seconds of all processes, as far as they are recorded.
    """
    return max(worked, sum(map(round_seconds, reports)))


def _scores(report: RoundReport) -> Iterator[Score]:
    """Yield all scores of a round: held out, of the clients, and of their validation after the last round."""
    if report.held_out is not None:
        yield report.held_out.overall
    for client in report.clients.values():
        yield from (score for score in (client.before, client.after) if score is not None)
    if report.validation is not None:
        yield report.validation


def weighted_mean(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the mean of values by their weights; nan without any weight."""
    weights_and_values = list(pairs)
    total = sum(weight for weight, _ in weights_and_values)
    return sum(weight * value for weight, value in weights_and_values) / total if total > 0 else math.nan
