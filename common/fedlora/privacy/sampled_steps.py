"""What steps over secretly drawn examples tell of one of them: epsilon at a delta, by Google's dp-accounting. Pure.

Of a step is released the sum of vectors of norm at most C over the examples that were drawn, each by itself with the
same probability (Poisson sampling), with Gaussian noise. Two data sets are neighbours where one example of one of them
is nobody's in the other: it is counted, and adds nothing. That C is then the greatest distance between two sums, and
how many examples there are is no secret. Where one example may be another's instead, epsilon is at most twice as large.

Two bounds are computed and the smaller is told; both hold also where later steps are chosen by what came of earlier
ones. That by Rényi divergences (RDP; Mironov, Talwar & Zhang 2019) takes no time, whatever is asked; the other, by the
distributions of the privacy loss (PLD; Koskela et al. 2020; Doroshenko et al. 2022), is tighter as a rule, and is left
out where the first is so large that nobody is private: the less noise, the more it takes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log10
from typing import Any

from fedlora.common.errors import ConfigError
from fedlora.privacy.accounting import accountant

# Whole ones: of others the divergences are slow, and may not be found.
_ORDERS = (*range(2, 25), 28, 32, 40, 48, 64, 96, 128, 256)
_MOST_EPSILON = 100.0
# Of the privacy loss; a tenth of it makes a fourth digit better, and takes ten times as long.
_INTERVAL = 1e-3
# Less is no noise: whose epsilon is above a thousand is not told apart.
_LEAST_MULTIPLIER, _MOST_MULTIPLIER = 0.01, 1e6


@dataclass(frozen=True)
class SampledSteps:
    """Steps of one kind.

    Attributes:
        noise_multiplier: the noise's standard deviation, over the largest norm that an example adds.
        count: how many there are.
        num_drawn: examples of a step on average; the probability of each is `num_drawn / num_examples`.
        num_examples: of which they are drawn.
    """

    noise_multiplier: float
    count: int
    num_drawn: int
    num_examples: int

    def __post_init__(self) -> None:
        if not (isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"a noise multiplier of {self.noise_multiplier}; expected a finite number above 0")
        if self.count < 0:
            raise ValueError(f"{self.count} steps; expected 0 or more")
        if not 1 <= self.num_drawn <= self.num_examples:
            raise ValueError(f"{self.num_drawn} drawn of {self.num_examples}; expected 1 or more of as many")


def epsilon_of_steps(steps: Sequence[SampledSteps], *, delta: float) -> float:
    """Return an upper bound of the epsilon that steps have together at `delta`; 0 if there are none.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    if not 0 < delta < 1:
        raise ValueError(f"a delta of {delta}; expected a number between 0 and 1")
    accounting = accountant()
    # Those of a kind together: however they were counted, they come to the same number.
    counts: Counter[tuple[float, int, int]] = Counter()
    for each in steps:
        counts[each.noise_multiplier, each.num_drawn, each.num_examples] += each.count
    if not any(counts.values()):
        return 0.0
    if min(counts)[0] < _LEAST_MULTIPLIER:
        return inf
    neighbours = accounting.NeighboringRelation.REPLACE_SPECIAL
    events = []
    for (multiplier, num_drawn, num_examples), count in sorted(counts.items()):
        event = accounting.GaussianDpEvent(multiplier)
        if num_drawn < num_examples:
            event = accounting.PoissonSampledDpEvent(num_drawn / num_examples, event)
        events.append((event, count))
    by_divergences = _together(accounting.rdp.RdpAccountant(_ORDERS, neighbours), events, delta)
    if not by_divergences <= _MOST_EPSILON:
        return by_divergences
    by_losses = accounting.pld.PLDAccountant(neighbours, value_discretization_interval=_INTERVAL)
    return min(by_divergences, _together(by_losses, events, delta))


def _together(accountant: Any, events: Sequence[tuple[Any, int]], delta: float) -> float:
    for event, count in events:
        if count:
            accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


def multiplier_for_steps(count: int, *, num_drawn: int, num_examples: int, epsilon: float, delta: float) -> float:
    """Return the least noise multiplier, of three digits, with which so many steps have at most `epsilon` at `delta`.

    Raises:
        ConfigError: dp-accounting is not installed, or no noise up to a million times the norm suffices.
    """

    def is_enough(multiplier: float) -> bool:
        steps = SampledSteps(multiplier, count, num_drawn, num_examples)
        return epsilon_of_steps([steps], delta=delta) <= epsilon

    if not epsilon > 0:
        raise ValueError(f"an epsilon of {epsilon}; expected more than 0")
    multiplier = _least(is_enough)
    if multiplier is None:
        raise ConfigError(f"no noise gives {count:,} steps an epsilon of {epsilon:g} at a delta of {delta:g}")
    unit = 10.0 ** (floor(log10(multiplier)) - 2)
    return round(ceil(multiplier / unit) * unit, 9)


def _least(is_enough: Callable[[float], bool]) -> float | None:
    """Return the least multiplier that is enough, to a thousandth, from the least up; None if none is."""
    # From large to small: with little noise the accounting takes longest.
    high = 1.0
    while not is_enough(high):
        high *= 2
        if high > _MOST_MULTIPLIER:
            return None
    low = high / 2
    while low > _LEAST_MULTIPLIER and is_enough(low):
        low, high = low / 2, low
    low = max(low, _LEAST_MULTIPLIER)
    if is_enough(low):
        return low
    while high / low > 1 + 1e-3:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
