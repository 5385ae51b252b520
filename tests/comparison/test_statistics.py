"""Intervals, tests and what they can show, against values worked by hand, closed forms and simulation."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.comparison.statistics import (
    Interval,
    bca_interval,
    can_show,
    holm,
    sample,
    sign_flip_p,
    smallest_difference,
    smallest_p,
    student_quantile,
)

few = settings(max_examples=30, deadline=None)
eighths = st.lists(st.integers(-80, 80).map(lambda count: count / 8), min_size=3, max_size=8)


def test_mean_and_deviation_are_those_of_the_finite_values() -> None:
    found = sample([1.0, 2.0, 4.0, math.nan])
    assert found is not None
    assert found.mean == pytest.approx(7 / 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert found.num == 3
    assert sample([math.nan]) is None
    alone = sample([0.5])
    assert alone is not None
    assert math.isnan(alone.deviation)


def test_of_symmetric_values_the_interval_is_the_percentiles() -> None:
    """All three resampled values are the same end in 1 of 27 resamples, which is more than 2.5 %."""
    assert bca_interval([-1.0, 0.0, 1.0]) == Interval(-1.0, 1.0)


def test_the_interval_is_moved_for_bias_and_skewness() -> None:
    """The resampled mean is binomial(5, 1/5), its plain percentiles 0 and 3.

    By hand: z0 = 0.082 for 53.3 % below the mean, a = 60 / (6 * 20^1.5) = 0.112; so the upper end is the quantile of
    99.7 %, where P(mean <= 3) = 99.3 %, and the lower that of 7.1 %, where P(mean = 0) = 32.8 %.
    """
    found = bca_interval([0.0, 5.0, 0.0, 0.0, 0.0])
    assert found is not None
    assert found.low == pytest.approx(0.0, abs=1e-9)
    assert found.high == pytest.approx(4.0)


def test_of_many_values_the_interval_is_nearly_the_normal_one() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    found, half = bca_interval(values.tolist()), 1.96 * values.std(ddof=1) / 20
    assert found is not None
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [0.1, 0.1, 0.1], [0.1 + 0.2, 0.3, 0.3]])
def test_without_a_spread_there_is_no_interval(values: list[float]) -> None:
    assert bca_interval(values) is None


@pytest.mark.parametrize(("num", "least", "most"), [(5, 0.76, 0.88), (10, 0.85, 0.94)])
def test_intervals_hold_the_truth_as_often_as_is_said_of_them(num: int, least: float, most: float) -> None:
    samples = np.random.default_rng(num).normal(size=(200, num))
    intervals = [bca_interval(values.tolist()) for values in samples]
    assert least < np.mean([interval is not None and not interval.excludes(0.0) for interval in intervals]) < most


def test_sign_flips_are_counted() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0]) == 2 / 32
    # Of sizes 1, 1, 2, 3 the sum found is 5: as far out are 7 and, with either 1 flipped, 5, on both sides.
    assert sign_flip_p([1.0, -1.0, 2.0, 3.0]) == 6 / 16
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    # What is as far out in another order of additions, 0.99... against 1.0, is as far out.
    assert sign_flip_p([0.1] * 10) == 2 / 1024


@pytest.mark.parametrize(("num", "num_negative"), [(16, 3), (20, 4)])
def test_sign_flips_of_equal_sizes_are_the_sign_test(num: int, num_negative: int) -> None:
    """Of so many, all 2^16 choices are counted, and of more as many drawn: three standard errors are 0.0015."""
    differences = [-1.0] * num_negative + [1.0] * (num - num_negative)
    exact = 2 * sum(math.comb(num, count) for count in range(num_negative + 1)) / 2**num
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.0015 if num > 16 else 1e-12)


@pytest.mark.parametrize("num", [1, 2, 5, 10, 16, 30])
def test_the_smallest_p_is_reached_by_differences_of_one_sign(num: int) -> None:
    assert sign_flip_p([1.0] * num) == smallest_p(num)


def test_five_draws_show_nothing_and_six_one_difference() -> None:
    assert not can_show(5, num_tests=1)
    assert can_show(6, num_tests=1)
    assert not can_show(6, num_tests=2)
    assert can_show(10, num_tests=25)


def test_holms_correction_steps_down() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == {"a": pytest.approx(0.03), "b": pytest.approx(0.06), "c": pytest.approx(0.06), "d": 0.02}
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("share", "freedom", "quantile"),
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 9, 2.262),
        (0.975, 30, 2.042), (0.8, 1, 1.376), (0.8, 4, 0.941), (0.8, 9, 0.883), (0.5, 7, 0.0), (0.025, 9, -2.262),
    ],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_tables(share: float, freedom: int, quantile: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize(("num", "num_tests"), [(6, 1), (10, 1), (10, 5), (20, 3)])
def test_the_smallest_difference_is_found_by_four_tests_of_five(num: int, num_tests: int) -> None:
    difference = smallest_difference(2.0, num, num_tests=num_tests)
    assert difference is not None
    draws = np.random.default_rng(num).normal(difference, 2.0, size=(20_000, num))
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(num))
    assert np.mean(np.abs(t) > student_quantile(1 - 0.025 / num_tests, num - 1)) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("deviation", "num", "num_tests"), [(1.0, 2, 1), (0.0, 10, 1), (math.nan, 1, 1), (1.0, 5, 1), (1.0, 6, 2)]
)
def test_no_smallest_difference_is_made_up(deviation: float, num: int, num_tests: int) -> None:
    assert smallest_difference(deviation, num, num_tests=num_tests) is None


@few
@given(eighths, st.integers(-16, 16))
def test_a_shift_moves_the_interval_and_nothing_else(values: list[float], shift: int) -> None:
    before, after = bca_interval(values), bca_interval([value + shift for value in values])
    assert (before is None) == (after is None)
    if before is not None and after is not None:
        assert after.low == pytest.approx(before.low + shift, abs=1e-6)
        assert after.high == pytest.approx(before.high + shift, abs=1e-6)
        assert min(values) - 1e-6 <= before.low <= before.high <= max(values) + 1e-6


@few
@given(eighths)
def test_the_other_sign_has_the_same_p(values: list[float]) -> None:
    assert sign_flip_p([-value for value in values]) == sign_flip_p(values)
    assert smallest_p(len(values)) <= sign_flip_p(values) <= 1.0


@few
@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=20).flatmap(
        lambda all_: st.tuples(st.just(all_), st.permutations(all_))
    )
)
def test_the_order_of_draws_changes_no_bit(pair: tuple[Sequence[float], Sequence[float]]) -> None:
    functions: tuple[Callable[[Sequence[float]], object], ...] = (sample, bca_interval, sign_flip_p)
    for function in functions:
        assert function(pair[0]) == function(pair[1])


@few
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(0, 1)))
def test_a_corrected_p_is_never_smaller_and_keeps_the_order(p_values: dict[str, float]) -> None:
    corrected = holm(p_values)
    assert list(corrected) == list(p_values)
    for name, p in p_values.items():
        assert p <= corrected[name] <= 1.0
        assert all(corrected[name] <= corrected[other] for other in p_values if p < p_values[other])
