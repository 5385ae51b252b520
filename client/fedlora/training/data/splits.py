"""Fixed samples of examples: held-out sets, and the part of a set that is judged after a round. Pure."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fedlora.training.data.examples import Words
from fedlora.training.partitioning import Indices, codes_of, members

Mask = npt.NDArray[np.bool_]


def held_out_rows(strata: Words, *, fraction: float, generator_of: Callable[[str], np.random.Generator]) -> Mask:
    """Return which examples are held out: of each stratum `fraction`, rounded half up, and never all of it.

    Args:
        strata: (n,), the stratum of each example: its group or its client.
        generator_of: the generator for a stratum, so that a stratum's draw does not depend on the others.
    """
    held_out = np.zeros(len(strata), dtype=np.bool_)
    for rows in members(strata):
        count = min(math.floor(fraction * len(rows) + 0.5), len(rows) - 1)
        held_out[generator_of(str(strata[rows[0]])).permutation(rows)[:count]] = True
    return held_out


def held_out_values(strata: Words, values: Words, *, fraction: float, random: np.random.Generator) -> Mask:
    """Return which examples are held out, so that all with one value are on the same side, whatever their stratum.

    Values are visited in random order. One is held out if that brings every stratum that has it nearer to its
    `fraction`, or leaves it as near, and takes no stratum whole; so a stratum can get less than its fraction.

    Args:
        strata: (n,), the stratum of each example: its group or its client.
        values: (n,), what must not be on both sides, such as a patient.
    """
    stratum_of = codes_of(strata)
    sizes = np.bincount(stratum_of)
    held = np.zeros(len(sizes), dtype=np.int64)
    held_out = np.zeros(len(strata), dtype=np.bool_)
    rows_of_values = members(values)
    for value in random.permutation(len(rows_of_values)):
        rows = rows_of_values[value]
        counts = np.bincount(stratum_of[rows], minlength=len(sizes))
        fits = (held + counts / 2 <= fraction * sizes) & (held + counts < sizes)
        if np.all(fits[counts > 0]):
            held += counts
            held_out[rows] = True
    return held_out


def equal_parts(groups: Words, num_examples: int) -> Indices:
    """Return ascending indices of a fixed sample: at most `num_examples`, in equal parts by group, evenly spaced.

    A group too small for its part is taken whole, and the others share what it leaves.

    Args:
        groups: (n,), the group of each example.
    """
    chosen: list[Indices] = [np.empty(0, np.int64)]
    remaining = min(num_examples, len(groups))
    smallest_first = sorted(members(groups), key=len)
    for number, rows in enumerate(smallest_first):
        count = min(len(rows), remaining // (len(smallest_first) - number))
        remaining -= count
        middles = (2 * np.arange(count) + 1) * len(rows) // max(2 * count, 1)
        chosen.append(rows[middles])
    return np.sort(np.concatenate(chosen))
