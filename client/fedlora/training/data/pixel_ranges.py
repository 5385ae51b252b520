"""Pictures deeper than 8 bits: which of their values is black and which white, and what becomes of the others. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.integer[Any]] | npt.NDArray[np.floating[Any]]
Ends = tuple[float, float]

# The bits that detectors and converters give a grey value; 1 is a mask's.
_DEPTHS = (1, 8, 10, 12, 14, 16)
_UNUSED_BELOW = 0.25
_SAMPLED = 4096


@dataclass(frozen=True)
class Spread:
    """Where the values of pictures lie.

    Attributes:
        low, high: the smallest and the largest value.
        bulk_low, bulk_high: no picture has more than 2 % of its values outside of these.
        is_whole: whether all values are whole numbers.
    """

    low: float
    high: float
    bulk_low: float
    bulk_high: float
    is_whole: bool


def spread_of(values: Values) -> Spread:
    """Return where the values of one picture, of any shape, lie.

    Raises:
        ValueError: a value that is no number.
    """
    if not np.isfinite(values).all():
        raise ValueError("has values that are not finite; replace NaN and infinity")
    flat = values.reshape(-1)
    # The ends of the bulk need no more than evenly spaced values: a large scan has tens of millions.
    bulk_low, bulk_high = np.quantile(flat[:: max(1, len(flat) // _SAMPLED)], [0.01, 0.99])
    is_whole = values.dtype.kind != "f" or bool(np.all(values == np.rint(values)))
    return Spread(float(flat.min()), float(flat.max()), float(bulk_low), float(bulk_high), is_whole)


def joined(spreads: Iterable[Spread]) -> Spread:
    """Return where the values of several pictures, one at least, lie."""
    found = list(spreads)
    return Spread(
        min(one.low for one in found),
        max(one.high for one in found),
        min(one.bulk_low for one in found),
        max(one.bulk_high for one in found),
        all(one.is_whole for one in found),
    )


def fitting_range(spread: Spread) -> Ends:
    """Return black and white for pictures of unknown depth: the least depth of whole numbers that holds them all.

    Fractions between 0 and 1 go from 0 to 1. Values below 0, above 16 bits, or with fractions go from the smallest
    to the largest.
    """
    if spread.low >= 0 and spread.high <= 1:
        return 0.0, 1.0
    if spread.low >= 0 and spread.is_whole:
        for depth in _DEPTHS:
            if spread.high < 2**depth:
                return 0.0, 2.0**depth - 1
    return spread.low, max(spread.high, float(np.nextafter(spread.low, np.inf)))


def is_mostly_unused(spread: Spread, ends: Ends) -> bool:
    """Return whether all but a few of the values fall into less than a quarter of the range."""
    low, high = max(spread.bulk_low, ends[0]), min(spread.bulk_high, ends[1])
    return high - low < _UNUSED_BELOW * (ends[1] - ends[0])


def num_outside(values: Values, ends: Ends) -> int:
    """Return how many values lie outside of the range, and will be black or white."""
    return int(np.count_nonzero((values < ends[0]) | (values > ends[1])))


def scaled(values: Values, ends: Ends) -> npt.NDArray[np.float32]:
    """Return values of any shape with black at 0 and white at 255; what is outside of the range is cut to its ends."""
    low, high = ends
    # In 64 bits: a narrow range far from 0 would be rounded away in 32.
    share = (values.astype(np.float64) - low) / (high - low)
    return (255.0 * np.clip(share, 0.0, 1.0)).astype(np.float32)


def range_text(ends: Ends) -> str:
    """Return the range as a run file has it."""
    return f"[{ends[0]:.10g}, {ends[1]:.10g}]"
