"""What a few paired draws can say: intervals, tests, and the smallest difference that they could show. Pure.

The same draws give the same numbers to the last bit, in whatever order they come.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# What is asked for throughout: intervals of 95 %, tests at 5 %, and a power of 80 %.
LEVEL = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8

# Of fewer draws there is neither an interval nor a smallest difference.
LEAST_DRAWS = 3

_NUM_RESAMPLES = 10_000
_MOST_EXACT = 16
_NUM_SIGN_FLIPS = 2**16 - 1
_SEED = 0

# Two sums of the same numbers in another order may differ by so much of their size.
_ROUNDING = 1e-9

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Sample:
    """The mean of so many values and their standard deviation (of n - 1), which is nan for a single value."""

    mean: float
    deviation: float
    num: int


@dataclass(frozen=True)
class Interval:
    """The ends of a confidence interval."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


def sample(values: Sequence[float]) -> Sample | None:
    """Return mean and standard deviation of the finite values; nothing where there is none."""
    finite = sorted(filter(math.isfinite, values))
    if not finite:
        return None
    mean = math.fsum(finite) / len(finite)
    squares = math.fsum((value - mean) ** 2 for value in finite)
    return Sample(mean, math.sqrt(squares / (len(finite) - 1)) if len(finite) > 1 else math.nan, len(finite))


def bca_interval(values: Sequence[float], *, level: float = LEVEL) -> Interval | None:
    """Return the bias-corrected and accelerated bootstrap interval of the mean.

    B. Efron, Better Bootstrap Confidence Intervals, JASA 82 (1987): the ends are the quantiles
    Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the resampled means, with z the normal quantiles of the level, z0 the
    normal quantile of the share of resampled means below the mean (half of those equal to it counted), and a the
    jackknife's acceleration, which is sum(c^3) / (6 sum(c^2)^1.5) of the centred values c for a mean.

    Of few values it is too narrow: of normal ones, one of 95 % holds the truth in 85 % of samples of 5, 90 %
    of 10 and 92 % of 20.

    Returns:
        Nothing for fewer than three values or where all are equal: resampling these knows of no spread.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) < LEAST_DRAWS:
        return None
    mean = float(ordered.mean())
    size = float(np.abs(ordered - mean).max())
    if size <= _ROUNDING * float(np.abs(ordered).max()):
        return None
    centred = (ordered - mean) / size
    chosen = np.random.default_rng(_SEED).integers(len(centred), size=(_NUM_RESAMPLES, len(centred)))
    resampled = centred[chosen].mean(axis=1)
    share_below = float(np.mean(resampled < -_ROUNDING) + np.mean(np.abs(resampled) <= _ROUNDING) / 2)
    bias = _NORMAL.inv_cdf(share_below)
    acceleration = float(np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5))

    def quantile(share: float) -> float:
        moved = bias + _NORMAL.inv_cdf(share)
        return float(np.quantile(resampled, _NORMAL.cdf(bias + moved / (1 - acceleration * moved))))

    return Interval(mean + size * quantile((1 - level) / 2), mean + size * quantile((1 + level) / 2))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of paired differences whose sign is as likely either way (R. A. Fisher, 1935).

    The share of all 2^n choices of signs whose sum is at least as far from zero as the one found. Of more than 16
    differences so many choices are drawn, and the one found is counted among them (B. Phipson and G. K. Smyth, 2010).
    """
    sizes = np.sort(np.abs(np.asarray(differences, dtype=np.float64)))
    found = abs(math.fsum(differences)) - _ROUNDING * float(sizes.sum())
    if len(sizes) > _MOST_EXACT:
        signs = np.random.default_rng(_SEED).choice((-1.0, 1.0), size=(_NUM_SIGN_FLIPS, len(sizes)))
        return float((np.count_nonzero(np.abs(signs @ sizes) >= found) + 1) / (_NUM_SIGN_FLIPS + 1))
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate((sums + size, sums - size))
    return float(np.mean(np.abs(sums) >= found))


def smallest_p(num: int) -> float:
    """Return the smallest p that sign flips of so many differences can reach: both, that found and its mirror image."""
    return min(1.0, 2.0 ** (1 - num)) if num <= _MOST_EXACT else 1 / (_NUM_SIGN_FLIPS + 1)


def can_show(num: int, *, num_tests: int) -> bool:
    """Return whether so many draws can reach significance at all, after Holm's correction of so many tests."""
    return num_tests * smallest_p(num) <= SIGNIFICANCE


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return each test's p corrected for the others (S. Holm, Scandinavian Journal of Statistics 6, 1979).

    The smallest is multiplied by the number of tests, the next by one less, and so on; none falls below one before it.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def smallest_difference(deviation: float, num: int, *, num_tests: int) -> float | None:
    """Return the difference that a two-sided paired t test finds with a power of 80 %, corrected for several tests.

    (t(1 - 0.025 / tests) + t(0.8)) times the standard error, with quantiles of n - 1 degrees of freedom (H. S. Bloom,
    Minimum Detectable Effects, Evaluation Review 19, 1995). 5 % divided by the number of tests is Bonferroni's level,
    the strictest of Holm's, which the smallest p has to meet.

    Args:
        deviation: of the differences.
        num: how many there are; nothing is returned without a spread, or where so many can show no difference.
        num_tests: how many are corrected for at once, this one among them.
    """
    if num < LEAST_DRAWS or not deviation > 0 or not can_show(num, num_tests=num_tests):
        return None
    level = SIGNIFICANCE / num_tests
    factor = student_quantile(1 - level / 2, num - 1) + student_quantile(POWER, num - 1)
    return factor * deviation / math.sqrt(num)


def student_quantile(share: float, freedom: int) -> float:
    """Return the quantile of Student's t with so many degrees of freedom."""
    low, high = -math.pi / 2, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share_below(middle, freedom) < share else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _student_share_below(angle: float, freedom: int) -> float:
    """Return the distribution function at t = sqrt(freedom) tan(angle): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + is_odd, freedom, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    within = 2 / math.pi * (angle + sine * total) if is_odd else sine * total
    return (1 + within) / 2
