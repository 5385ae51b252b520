"""What is known of a run at one moment: the same, event by event, as from all of its reports."""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.common.messages import Score
from fedlora.server.record.events import EvaluationStarted, Event, RoundEnded, RoundStarted, RunStarted, UpdateArrived
from fedlora.server.record.round_report import ClientReport, RoundReport
from fedlora.server.record.running_summary import NUM_LATEST, Course, RunningSummary, ended, new_refusals, updated
from fedlora.server.report.validation import best_of, validation_by_round

CLIENTS = ("north", "south")
LOSSES = st.none() | st.floats(0.0, 3.0) | st.just(math.nan)


def report(number: int, *, before: float | None = None, validation: float | None = None, **changes: str) -> RoundReport:
    score = None if before is None else Score(10, before, 0.5)
    clients = {name: ClientReport(50, 8, 1.0, score, None, {}) for name in CLIENTS if name not in changes}
    last = None if validation is None else Score(20, validation, 0.5)
    seconds = {"training": 9.0, "evaluation": 1.0}
    return RoundReport(number, CLIENTS, clients, changes, None, None, 20, 10, seconds, validation=last)


def after(events: Iterable[Event], summary: RunningSummary | None = None) -> RunningSummary:
    summary = summary or RunningSummary()
    for event in events:
        summary = updated(summary, event)
    return summary


@given(st.lists(st.tuples(LOSSES, LOSSES), max_size=2 * NUM_LATEST))
def test_validation_is_that_of_all_reports_together(losses: list[tuple[float | None, float | None]]) -> None:
    """Also where the last round's score, for which its clients were asked, is replaced in a round that follows."""
    reports = [report(number, before=one, validation=other) for number, (one, other) in enumerate(losses)]
    validation = after(map(RoundEnded, reports)).validation
    scores = validation_by_round(reports)
    assert validation.course.latest == tuple(score.loss for score in scores.values())[-NUM_LATEST:]
    best = best_of(scores)
    assert validation.best == (None if best is None else (scores[best].loss, best))


def test_a_resumed_run_knows_what_an_uninterrupted_one_does() -> None:
    reports = tuple(report(number, before=1.0 / (number + 1), south="late") for number in range(4))
    rounds = [(RoundStarted(each.round, CLIENTS, ()), RoundEnded(each)) for each in reports]
    events = [RunStarted(CLIENTS, 9, 0, ()), *chain(*rounds), RoundStarted(4, CLIENTS, ())]
    resumed = after([RunStarted(CLIENTS, 9, 4, reports), RoundStarted(4, CLIENTS, ())])
    assert resumed == after(events)
    assert resumed.num_refused == resumed.totals.refused == 4
    assert resumed.last_refused == (3, "south", "late")


def test_a_course_keeps_its_first_and_its_latest_values() -> None:
    course = Course()
    for value in range(100):
        course = course.then(float(value))
    assert (course.first, course.latest) == (0.0, tuple(map(float, range(100 - NUM_LATEST, 100))))


def test_a_summary_of_many_rounds_is_no_larger_than_that_of_some() -> None:
    def size(value: object) -> int:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
        fields = vars(value).values() if hasattr(value, "__dict__") else ()
        return sys.getsizeof(value) + sum(map(size, (*parts, *fields)))

    sizes = [
        size(after(RoundEnded(report(number, before=1.0, south="late")) for number in range(count)))
        for count in (2 * NUM_LATEST, 20 * NUM_LATEST)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_an_update_that_is_refused_after_all_is_accepted_no_more() -> None:
    answers = [UpdateArrived(1, "north", "", 1.0), UpdateArrived(1, "south", "", 1.0)]
    outlier = UpdateArrived(1, "south", "norm_too_large", 1.0)
    summary = after([RunStarted(CLIENTS, 2, 1, ()), RoundStarted(1, CLIENTS, ()), *answers, outlier])
    assert (summary.accepted, summary.refused) == (("north",), {"south": "norm_too_large"})
    assert new_refusals(summary, RoundEnded(report(1, south="norm_too_large"))) == {}


def test_a_round_in_progress_counts_by_its_answers() -> None:
    begun = after([RunStarted(CLIENTS, 2, 1, (report(0),)), RoundStarted(1, CLIENTS, ("north",))])
    assert begun.answered_share == pytest.approx(1 / 3)
    judged = after([UpdateArrived(1, "south", "", 1.0), EvaluationStarted(1)], begun)
    assert judged.answered_share == pytest.approx(2 / 3)
    assert after([RoundEnded(report(1))], judged).answered_share == 0.0


def test_a_run_that_nobody_is_at_work_on_is_stopped_unless_it_is_finished() -> None:
    begun = after([RunStarted(CLIENTS, 1, 0, ()), RoundEnded(report(0)), RoundStarted(1, CLIENTS, ())])
    assert ended(begun).phase == "stopped"
    finished = after([RoundEnded(replace(report(1), ended_early=True))], begun)
    assert ended(finished).phase == "finished"
