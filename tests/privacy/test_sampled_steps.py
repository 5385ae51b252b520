"""The epsilon of steps over drawn examples: against closed forms, other bounds, and its own inverse."""

import dp_accounting
import pytest

from fedlora.common.errors import ConfigError
from fedlora.privacy.accounting import Release, epsilon_of
from fedlora.privacy.sampled_steps import SampledSteps, epsilon_of_steps, multiplier_for_steps

DELTA = 1e-5


def test_steps_over_all_examples_are_those_without_sampling() -> None:
    found = epsilon_of_steps([SampledSteps(5.0, 20, 30, 30)], delta=DELTA)
    expected = epsilon_of([Release(5.0, 20)], delta=DELTA)
    assert expected <= found <= expected * 1.01


def test_it_is_no_more_than_by_renyi_divergences() -> None:
    """RDP is the looser bound of the same (Mironov, Talwar & Zhang 2019), by less than the half here."""
    accountant = dp_accounting.rdp.RdpAccountant(range(2, 65), dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(16 / 1000, dp_accounting.GaussianDpEvent(1.0)), 500)
    by_divergences = accountant.get_epsilon(DELTA)
    assert 0.6 * by_divergences < epsilon_of_steps([SampledSteps(1.0, 500, 16, 1000)], delta=DELTA) < by_divergences


@pytest.mark.parametrize(
    "steps", [SampledSteps(1e-300, 1, 1, 100), SampledSteps(0.01, 1, 1, 100), SampledSteps(0.1, 10**7, 50, 100)]
)
def test_next_to_no_noise_takes_no_time_and_tells_everything(steps: SampledSteps) -> None:
    """A server can write any number into the run file; by privacy losses these would take all memory."""
    assert epsilon_of_steps([steps], delta=DELTA) > 100


def test_however_steps_are_counted_they_come_to_the_same_number() -> None:
    whole = epsilon_of_steps([SampledSteps(1.0, 30, 4, 40)], delta=DELTA)
    parts = [SampledSteps(1.0, 10, 4, 40), SampledSteps(1.0, 0, 4, 40), SampledSteps(1.0, 20, 4, 40)]
    assert epsilon_of_steps(parts, delta=DELTA) == whole
    other = SampledSteps(2.0, 1, 8, 40)
    assert (
        epsilon_of_steps([*parts, other], delta=DELTA) == epsilon_of_steps([other, *parts[::-1]], delta=DELTA) > whole
    )
    assert epsilon_of_steps([], delta=DELTA) == epsilon_of_steps([parts[1]], delta=DELTA) == 0.0


@pytest.mark.parametrize(("count", "num_drawn", "num_examples", "epsilon"), [(40, 16, 400, 2.0), (3, 5, 5, 1.0)])
def test_the_noise_for_an_epsilon_is_the_least(count: int, num_drawn: int, num_examples: int, epsilon: float) -> None:
    found = multiplier_for_steps(count, num_drawn=num_drawn, num_examples=num_examples, epsilon=epsilon, delta=DELTA)
    at, below = (
        epsilon_of_steps([SampledSteps(multiplier, count, num_drawn, num_examples)], delta=DELTA)
        for multiplier in (found, 0.98 * found)
    )
    assert at <= epsilon < below


def test_an_epsilon_that_no_noise_gives_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise gives 1 steps an epsilon of 1e-12"):
        multiplier_for_steps(1, num_drawn=1, num_examples=1, epsilon=1e-12, delta=1e-12)


@pytest.mark.parametrize(
    "values", [(0.0, 1, 1, 2), (float("nan"), 1, 1, 2), (1.0, -1, 1, 2), (1.0, 1, 0, 2), (1.0, 1, 3, 2)]
)
def test_what_are_no_steps_is_a_programmers_error(values: tuple[float, int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SampledSteps(*values)
