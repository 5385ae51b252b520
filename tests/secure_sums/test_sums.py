"""The total is what it is in the open, whoever leaves and wherever."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from sums import Place, gathered, members_of, names, plan_of, vectors_of

from fedlora.secure_sums.gathering import SumLost
from fedlora.secure_sums.member import SumRefused

PLACES: list[Place] = [
    "keys", "sealed", "taken",
    ("masked", 0), ("consented", 0), ("revealed", 0), ("masked", 1), ("consented", 1), ("revealed", 1),
]  # fmt: skip


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
@pytest.mark.parametrize("place", [None, *PLACES], ids=str)
def test_the_total_is_that_of_who_is_there_wherever_one_leaves(place: Place | None, kind: type) -> None:
    plan = plan_of(5, threshold=4)
    vectors = vectors_of(plan, kind=kind)
    totals = gathered(plan, vectors, {} if place is None else {"site-001": place})
    for index, (total, there) in enumerate(totals):
        expected = np.sum([vectors[index][name] for name in there], axis=0, dtype=kind)
        np.testing.assert_array_equal(total, expected)
        has_sent = place is None or PLACES.index(place) > PLACES.index(("masked", index))
        assert there == (plan.members if has_sent else tuple(name for name in plan.members if name != "site-001"))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_with_fewer_than_the_threshold_there_is_no_total(place: Place) -> None:
    plan = plan_of(5, threshold=4)
    # A member that has too few consents tells nothing; else the server finds that it has too little.
    with pytest.raises((SumLost, SumRefused), match="4"):
        gathered(plan, vectors_of(plan), {"site-001": place, "site-003": place})


def test_members_that_leave_at_different_places_leave_the_others_total() -> None:
    plan = plan_of(12)
    vectors = vectors_of(plan)
    leaving: dict[str, Place] = {
        "site-000": "keys", "site-002": "taken", "site-004": ("masked", 1), "site-008": ("revealed", 1),
    }  # fmt: skip
    (first, there), (second, later) = gathered(plan, vectors, leaving)
    assert there == tuple(name for name in plan.members if name not in ("site-000", "site-002"))
    assert later == tuple(name for name in there if name != "site-004")
    np.testing.assert_array_equal(first, np.sum([vectors[0][name] for name in there], axis=0, dtype=np.uint32))
    np.testing.assert_array_equal(second, np.sum([vectors[1][name] for name in later], axis=0, dtype=np.uint32))


def test_two_of_three_have_their_total_when_one_leaves_in_the_second_sum() -> None:
    plan = plan_of(3)
    vectors = vectors_of(plan)
    (first, there), (second, later) = gathered(plan, vectors, {"site-002": ("masked", 1)})
    assert (there, later) == (names(3), names(2))
    np.testing.assert_array_equal(first, np.sum(list(vectors[0].values()), axis=0, dtype=np.uint32))
    np.testing.assert_array_equal(second, vectors[1]["site-000"] + vectors[1]["site-001"])


def test_a_sparse_sum_of_sixty_is_exact_with_a_fifth_of_them_gone() -> None:
    plan = plan_of(60, threshold=40, num_sums=1)
    vectors = vectors_of(plan, size=10)
    leaving: dict[str, Place] = dict.fromkeys(plan.members[::5], ("masked", 0))
    ((total, there),) = gathered(plan, vectors, leaving)
    assert len(there) == 48
    np.testing.assert_array_equal(total, np.sum([vectors[0][name] for name in there], axis=0, dtype=np.uint32))


def test_a_members_hidden_vector_shows_nothing_of_it() -> None:
    plan = plan_of(3, num_sums=1)
    members = members_of(plan)
    zeros = [{name: np.zeros(100_000, np.uint32) for name in plan.members}]
    gathered(plan, zeros, members=members)
    hidden = members["site-000"].masked(0, zeros[0]["site-000"])
    # Of numbers drawn evenly from 0 to 2^32: the mean is off by no more than five times its spread.
    assert abs(hidden.mean() / 2**32 - 0.5) < 5 * (1 / 12 / hidden.size) ** 0.5
    assert len(np.unique(hidden)) > 0.99 * hidden.size
