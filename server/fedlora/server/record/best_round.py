"""Which round was the best, by the clients' validation, and whether the run has stopped getting better. Pure."""

import math
from collections.abc import Iterable, Mapping

from fedlora.common.messages import Score
from fedlora.server.record.fair_shares import merge_fairly
from fedlora.server.record.round_report import ClientReport, RoundReport


def scores_in(report: RoundReport) -> dict[int, Score]:
    """Return by round the scores that a report tells, on the validation examples of the clients that judged.

    A client judges the adapter that it is given before it trains: so a round's score is known in the next one, and
    after the last round from the clients that were asked for it.
    """
    of_this = {} if report.validation is None else {report.round: report.validation}
    return score_of_start(report.round, report.clients) | of_this


def score_of_start(round: int, clients: Mapping[str, ClientReport]) -> dict[int, Score]:
    """Return by its round the score of the adapter that `round` started from, if anybody judged it.

    No client owns it: see `merge_fairly`.
    """
    before = {name: part.before for name, part in clients.items() if part.before is not None and part.age == 0}
    return {round - 1: merge_fairly(before)} if before else {}


def validation_scores(reports: Iterable[RoundReport]) -> dict[int, Score]:
    """Return by round the score of the adapter after it; see `scores_in`."""
    return {number: score for report in reports for number, score in scores_in(report).items()}


def best_round(scores: Mapping[int, Score]) -> int | None:
    """Return the round of the lowest loss, the first of equals; None where there is no finite one."""
    finite = {number: score.loss for number, score in scores.items() if math.isfinite(score.loss)}
    return min(finite, key=lambda number: (finite[number], number)) if finite else None


def has_stalled(scores: Mapping[int, Score], *, patience: int) -> bool:
    """Return whether the last `patience` rounds with a score were no better than one before them; never for 0."""
    best = best_round(scores)
    return patience > 0 and best is not None and max(scores) - best >= patience
