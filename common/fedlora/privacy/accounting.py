"""What releases with Gaussian noise tell together: epsilon at a delta, by Google's dp-accounting. Pure.

Two bounds are computed and the smaller is told; both hold for releases of which each is chosen by those before it.

- Without sampling, the releases together are one Gaussian's of the noise multiplier (sum of 1 / multiplier²)^(-1/2)
  (Dong, Roth & Su 2022, corollary 3.3), whose privacy loss is known in closed form (Balle & Wang 2018, theorem 8):
  what an accountant of privacy loss distributions (PLD) approaches from above.
- With sampling without replacement, by Rényi divergences (RDP; Wang, Balle & Kasiviswanathan 2019, theorem 27). A
  privacy loss distribution is not known for it.

What neighbours are, two data sets that nobody must be able to tell apart, lies in the noise multiplier: it is the
noise's standard deviation over the greatest distance (Euclidean) between the released values of two neighbours. Of a
sum of vectors of norm at most C that is C where neighbours are one vector more or less, and 2 C where one vector is
replaced by another. Sampling without replacement is for the second alone: the number sampled from is known to all.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from math import ceil, floor, isfinite, log10
from types import ModuleType

from fedlora.common.errors import ConfigError

# Those of 129 and more take most of the time, and matter for an epsilon under 0.1 alone.
_ORDERS = (
    1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, *range(6, 25), 28, 32, 36, 40, 48, 56, 64, 96, 128,
)  # fmt: skip
_MOST_COUNT = 1 << 40
_MOST_MULTIPLIER = 1e6


@dataclass(frozen=True)
class Release:
    """Values released with Gaussian noise.

    Attributes:
        noise_multiplier: the noise's standard deviation, over the greatest distance between the values of neighbours.
        count: how many such releases there are.
        sampled: each is over a sample of `sampled[0]` drawn from `sampled[1]` uniformly, without replacement, anew for
            each release and unknown to whoever sees it; neighbours then differ in one that is replaced. None: over all,
            or over a sample that others may know, which is as good as over all.
    """

    noise_multiplier: float
    count: int = 1
    sampled: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"a noise multiplier of {self.noise_multiplier}; expected a finite number above 0")
        if self.count < 0:
            raise ValueError(f"{self.count} releases; expected 0 or more")
        if self.sampled is not None and not 1 <= self.sampled[0] <= self.sampled[1]:
            raise ValueError(f"a sample of {self.sampled[0]} from {self.sampled[1]}; expected 1 or more of as many")


def epsilon_of(releases: Sequence[Release], *, delta: float) -> float:
    """Return an upper bound of the epsilon that releases have together at `delta`; 0 if there are none.

    Raises:
        ConfigError: dp-accounting is not installed.
    """
    if not 0 < delta < 1:
        raise ValueError(f"a delta of {delta}; expected a number between 0 and 1")
    accounting = accountant()
    made = _alike_together(releases)
    if not made:
        return 0.0
    together = sum(release.count / release.noise_multiplier**2 for release in made) ** -0.5
    epsilon = float(accounting.get_epsilon_gaussian(together, delta))
    if any(release.sampled for release in made):
        epsilon = min(epsilon, _by_divergences(accounting, made, delta))
    return epsilon


def most_count(each: Sequence[Release], *, after: Sequence[Release] = (), epsilon: float, delta: float) -> int:
    """Return how many times `each` can be released after `after` before they have more than `epsilon` at `delta`.

    Args:
        each: what is released at a time, such as the sums of a round.

    Raises:
        ConfigError: dp-accounting is not installed.
    """

    def is_within(count: int) -> bool:
        further = [replace(release, count=release.count * count) for release in each]
        return epsilon_of([*after, *further], delta=delta) <= epsilon

    if not any(release.count for release in each):
        raise ValueError("nothing is released; expected one release or more")
    if not is_within(1):
        return 0
    within, beyond = 1, 2
    while beyond < _MOST_COUNT and is_within(beyond):
        within, beyond = beyond, 2 * beyond
    while beyond - within > 1:
        middle = (within + beyond) // 2
        within, beyond = (middle, beyond) if is_within(middle) else (within, middle)
    return within


def noise_multiplier_for(count: int, *, epsilon: float, delta: float, sampled: tuple[int, int] | None = None) -> float:
    """Return the least noise multiplier, of four digits, with which `count` releases have at most `epsilon` at `delta`.

    Raises:
        ConfigError: dp-accounting is not installed, or no noise up to a million times the distance suffices.
    """
    if not (epsilon > 0 and count >= 1):
        raise ValueError(f"{count} releases within an epsilon of {epsilon}; expected one or more, within more than 0")

    def is_enough(multiplier: float) -> bool:
        return epsilon_of([Release(multiplier, count, sampled)], delta=delta) <= epsilon

    if not is_enough(_MOST_MULTIPLIER):
        raise ConfigError(f"no noise gives {count:,} releases an epsilon of {epsilon:g} at a delta of {delta:g}")
    multiplier = _least(is_enough)
    digits = 3 - floor(log10(multiplier))
    return round(ceil(multiplier * 10.0**digits) / 10.0**digits, digits)


def accountant() -> ModuleType:
    """Return dp-accounting.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module("dp_accounting")
    except ImportError as missing:
        raise ConfigError(
            "differential privacy needs dp-accounting, which works out epsilon: pip install 'fedlora[privacy]'"
        ) from missing


def _alike_together(releases: Sequence[Release]) -> list[Release]:
    """Return releases with those of one noise and sample as one: a divergence is worked out once for them all."""
    counts: Counter[Release] = Counter()
    for release in releases:
        counts[replace(release, count=1)] += release.count
    return [replace(like, count=count) for like, count in counts.items() if count]


def _by_divergences(accounting: ModuleType, releases: Sequence[Release], delta: float) -> float:
    """Return the epsilon of releases by their Rényi divergences, with what sampling takes from it."""
    accountant = accounting.rdp.RdpAccountant(_ORDERS, accounting.NeighboringRelation.REPLACE_ONE)
    for release in releases:
        event = accounting.GaussianDpEvent(release.noise_multiplier)
        if release.sampled is not None:
            size, of = release.sampled
            event = accounting.SampledWithoutReplacementDpEvent(of, size, event)
        accountant.compose(event, release.count)
    return float(accountant.get_epsilon(delta))


def _least(is_enough: Callable[[float], bool]) -> float:
    """Return the least multiplier that is enough, to a fifth digit, and enough itself."""
    low, high = 1e-3, 1.0
    while not is_enough(high):
        low, high = high, 2 * high
    while high / low > 1 + 1e-5:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
