"""Epsilon against the formula of a single Gaussian, published values, brute force and limits."""

import math
import sys

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from fedlora.common.errors import ConfigError
from fedlora.privacy.accounting import Release, epsilon_of, most_count, noise_multiplier_for

DELTA = 1e-5


def of_one_gaussian(multiplier: float, delta: float) -> float:
    """Return epsilon by bisection on Balle & Wang 2018, theorem 8."""

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta_at(epsilon: float) -> float:
        inner, outer = 1 / (2 * multiplier), epsilon * multiplier
        return normal(inner - outer) - math.exp(epsilon) * normal(-inner - outer)

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("multiplier", [0.4, 0.7, 1.0, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_one_release_has_the_epsilon_of_the_formula(multiplier: float, delta: float) -> None:
    assert epsilon_of([Release(multiplier)], delta=delta) == pytest.approx(of_one_gaussian(multiplier, delta), rel=1e-6)


def test_many_releases_are_one_with_less_noise() -> None:
    many = epsilon_of([Release(6.0, 9), Release(4.0, 4)], delta=DELTA)
    assert many == pytest.approx(of_one_gaussian((9 / 36 + 4 / 16) ** -0.5, DELTA), rel=1e-6)
    one_by_one = epsilon_of([Release(6.0)] * 9 + [Release(4.0)] * 4, delta=DELTA)
    assert many == pytest.approx(one_by_one, rel=1e-9)


def test_a_privacy_loss_distribution_is_never_under_it() -> None:
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(3.0), 20)
    numeric = accountant.get_epsilon(DELTA)
    assert numeric * (1 - 1e-4) <= epsilon_of([Release(3.0, 20)], delta=DELTA) <= numeric


def test_sampling_has_the_divergence_of_the_papers_theorem() -> None:
    """Order 2 of Wang, Balle & Kasiviswanathan 2019, theorem 27: log(1 + q² min(4 (e^r - 1), 2 e^r))."""
    sigma, share, count = 0.5, 0.05, 200  # where no other order tells less
    r = 1 / sigma**2
    divergence = count * math.log1p(share**2 * min(4 * math.expm1(r), 2 * math.exp(r)))
    by_order_two = divergence + math.log1p(-1 / 2) - math.log(DELTA * 2)
    assert epsilon_of([Release(sigma, count, (5, 100))], delta=DELTA) == pytest.approx(by_order_two, rel=1e-9)


def test_a_sample_tells_less_and_never_more() -> None:
    plain = epsilon_of([Release(1.0, 100)], delta=DELTA)
    assert epsilon_of([Release(1.0, 100, (5, 500))], delta=DELTA) < plain / 10
    assert epsilon_of([Release(1.0, 100, (499, 500))], delta=DELTA) <= plain
    assert epsilon_of([Release(1.0, 100, (500, 500))], delta=DELTA) == pytest.approx(plain, rel=1e-9)


def test_more_releases_and_less_noise_tell_more() -> None:
    epsilons = [epsilon_of([Release(2.0, count, (8, 100))], delta=DELTA) for count in (1, 10, 100, 1000)]
    assert epsilons == sorted(epsilons)
    assert epsilon_of([], delta=DELTA) == 0.0
    assert epsilon_of([Release(1.0, 0)], delta=DELTA) == 0.0


@pytest.mark.parametrize("sampled", [None, (40, 100)])
def test_a_budget_is_used_up_and_not_passed(sampled: tuple[int, int] | None) -> None:
    each, after = [Release(3.0, 1, sampled), Release(4.0, 2)], [Release(9.0)]
    count = most_count(each, after=after, epsilon=6.0, delta=DELTA)

    def epsilon(times: int) -> float:
        return epsilon_of([*after, *each * times], delta=DELTA)

    assert count > 1
    assert epsilon(count) <= 6.0 < epsilon(count + 1)


def test_a_budget_that_is_spent_allows_none() -> None:
    assert most_count([Release(1.0)], epsilon=1.0, delta=DELTA) == 0
    assert most_count([Release(50.0)], after=[Release(1.0)], epsilon=4.0, delta=DELTA) == 0


@pytest.mark.parametrize(("count", "sampled"), [(1, None), (40, None), (20, (8, 40))])
def test_the_noise_for_a_budget_is_the_least(count: int, sampled: tuple[int, int] | None) -> None:
    multiplier = noise_multiplier_for(count, epsilon=2.0, delta=DELTA, sampled=sampled)
    assert epsilon_of([Release(multiplier, count, sampled)], delta=DELTA) <= 2.0
    assert epsilon_of([Release(multiplier * 0.999, count, sampled)], delta=DELTA) > 2.0
    assert multiplier == float(f"{multiplier:.4g}")


def test_a_budget_that_no_noise_keeps_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise gives 1,000,000,000 releases an epsilon of 1e-08"):
        noise_multiplier_for(10**9, epsilon=1e-8, delta=1e-9)


def test_without_an_accountant_there_is_no_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match=r"pip install 'fedlora\[privacy\]'"):
        epsilon_of([Release(1.0)], delta=DELTA)


def test_what_is_no_release_is_refused() -> None:
    for multiplier, count, sampled in ((0.0, 1, None), (math.inf, 1, None), (1.0, -1, None), (1.0, 1, (3, 2))):
        with pytest.raises(ValueError, match="expected"):
            Release(multiplier, count, sampled)
    with pytest.raises(ValueError, match="a delta of 0"):
        epsilon_of([], delta=0)
