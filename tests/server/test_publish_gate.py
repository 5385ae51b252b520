"""Which rounds' adapters are published: those that are not worse than they may be, judged as best/ is."""

import math

import pytest

from fedlora.common.messages import Score
from fedlora.server.record.publish_gate import Losses, refusal
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport


def report(number: int, *, start: float | None = None, own: float | None = None, held_out: float = 9.0) -> RoundReport:
    """Return a round whose client judged what it started from, and after which all judged what came of it."""
    before = None if start is None else Score(10, start, 0.5)
    client = ClientReport(num_examples=8, num_steps=1, loss=1.0, before=before, after=None, seconds={})
    return RoundReport(
        number,
        ("a",) if number else (),
        {"a": client} if number else {},
        {},
        None,
        HeldOutReport(Score(8, held_out, 0.5), {}, is_complete=True),
        bytes_down=0,
        bytes_up=0,
        validation=None if own is None else Score(10, own, 0.5),
    )


def losses_of(*reports: RoundReport) -> Losses:
    known = Losses()
    for each in reports:
        known = known.then(each)
    return known


def test_a_rounds_validation_is_known_with_the_next_round_and_of_the_last_one_at_once() -> None:
    known = losses_of(report(0), report(1, start=2.0))
    assert (known.of(0), known.of(1)) == (2.0, None)
    assert known.then(report(2, start=1.0, own=0.5)).of(1) == 1.0
    assert known.then(report(2, start=1.0, own=0.5)).of(2) == 0.5
    assert known.name == "validation loss"


def test_where_no_client_validates_the_held_out_loss_is_known_at_once() -> None:
    known = losses_of(report(0, held_out=2.0), report(1, held_out=1.5))
    assert (known.of(0), known.of(1), known.name) == (2.0, 1.5, "held-out loss")


@pytest.mark.parametrize(
    ("loss", "margin", "published", "words"),
    [
        (1.09, 0.1, [1], ""),
        (
            1.11,
            0.1,
            [1],
            "its validation loss is 1.11, more than 10% above that of round 1, 1 (exchange.publish_margin)",
        ),
        (1.11, None, [1], ""),
        (0.9, 0.0, [1], ""),
        (1.0, 0.0, [1], ""),
        # With nothing published yet, what it must not be worse than is the start.
        (2.1, 0.0, [], "its validation loss is 2.1, more than 0% above that of the start, 2 (exchange.publish_margin)"),
        (1.5, 0.0, [], ""),
        (math.nan, 0.5, [], "its validation loss is nan"),
        (math.inf, 0.5, [], "its validation loss is inf"),
    ],
)
def test_a_loss_may_be_so_large_a_part_above_the_lowest_published(
    loss: float, margin: float | None, published: list[int], words: str
) -> None:
    known = losses_of(report(0), report(1, start=2.0), report(2, start=1.0), report(3, start=loss))
    assert refusal(known, 2, margin=margin, published=published) == words


def test_what_nobody_has_judged_is_not_compared() -> None:
    known = losses_of(report(0), report(1, start=2.0))
    assert refusal(known, 1, margin=0.1).startswith("nobody has judged it")
    assert refusal(known, 1, margin=None, rolled_back_to=0).startswith("nobody has judged it")
    assert refusal(known, 1, margin=None) == ""


def test_after_a_rollback_only_a_lower_loss_will_do() -> None:
    known = losses_of(report(0), report(1, start=2.0), report(2, start=1.0), report(3, start=1.0), report(4, start=0.9))
    assert refusal(known, 2, margin=None, rolled_back_to=1) == (
        "its validation loss is 1, and the run is rolled back to round 1, with 1"
    )
    assert refusal(known, 3, margin=None, rolled_back_to=1) == ""
    assert refusal(known, 3, margin=None, rolled_back_to=7).endswith("rolled back to round 7, of which none is known")
