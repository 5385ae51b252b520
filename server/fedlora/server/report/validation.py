"""The clients' own validation of each round's adapter, and the best round by it."""

import math
from collections.abc import Mapping, Sequence

from fedlora.common.messages import Score
from fedlora.server.record.best_round import best_round, validation_scores
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import is_of_tokens, trained
from fedlora.server.report.wording import count_text, error_texts, loss_text


def validation_by_round(reports: Sequence[RoundReport]) -> dict[int, Score]:
    """Return the score of each round's adapter on the clients' validation examples, where it is known and finite."""
    if not reports:
        return {}
    return {at: score for at, score in sorted(validation_scores(reports).items()) if math.isfinite(score.loss)}


def best_of(scores: Mapping[int, Score]) -> int | None:
    """Return the round with the lowest loss on the clients' validation examples; None where there is no choice."""
    if len(scores) < 2:
        return None
    return best_round(scores)


def about_best(reports: Sequence[RoundReport]) -> str:
    """Return which round is the best by the clients' validation loss; nothing where there is no choice."""
    scores = validation_by_round(reports)
    best = best_of(scores)
    if best is None:
        return ""
    lowest, last = scores[best].loss, max(scores)
    per = " per token" if is_of_tokens(reports) else ""
    if best == 0:
        text = f"By the clients' validation loss no round is better than the start, which has {loss_text(lowest)}{per}."
    elif best == last:
        which = "the last one" if last == reports[-1].round else "the last that was judged so"
        text = f"The best round by the clients' validation loss is {which}, {best}, with {loss_text(lowest)}{per}"
    else:
        texts = error_texts(lowest, scores[last].loss)
        text = (
            f"The best round by the clients' validation loss is round {best}, with {texts[0]}{per} "
            f"against {texts[1]} after round {last}"
        )
    if best > 0:
        text += "; best/ holds its adapter."
    if len({report.cohort for report in trained(reports)}) > 1:
        text += " Not all clients are asked in every round, so the scores compared are of different examples."
    return text


def about_early_end(reports: Sequence[RoundReport], *, num_rounds: int) -> str:
    """Return that the run ended before its planned rounds and why; nothing where it did not."""
    if not reports[-1].ended_early:
        return ""
    ended = reports[-1].round
    if reports[-1].is_out_of_budget:
        return f"The run ended early, in round {ended} of {num_rounds}: {reports[-1].why_ended}."
    best = best_of(validation_by_round(reports))
    since = f" for {count_text(ended - best, 'round')}" if best is not None and best < ended else ""
    return (
        f"The run ended early, after round {ended} of {num_rounds}: "
        f"the clients' validation loss had not become lower{since}."
    )
