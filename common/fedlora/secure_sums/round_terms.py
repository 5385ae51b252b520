"""What server and clients alike make of a round's terms: the plan, how numbers are written, what a client weighs.

A vector travels as a safetensors file with one tensor.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from fedlora.common.messages import SumTerms
from fedlora.secure_sums.keys import SumPlan, digest
from fedlora.secure_sums.ring import Bits, FixedPoint, Ring

LEAST_CLIP, MOST_CLIP = 2.0**-12, 64.0
# So often a round may begin anew.
MOST_REPETITIONS = 100

_VECTOR = "sum"
# How large a client's change is at least (its root mean square), in units of the sum's numbers, if it is none at all.
_LEAST_UNITS = 16
_BITS: Bits = 32


def plan_of(run: str, round: int, terms: SumTerms) -> SumPlan:
    """Return what the members of a round's sums have in common.

    Raises:
        ValueError: the terms are none.
    """
    numbers = struct.pack(f"<Qd{len(terms.clips)}d", terms.most_examples, terms.most_change, *terms.clips)
    return SumPlan(
        run, round, terms.repetition, terms.members, terms.threshold, len(terms.clips), digest(b"terms", numbers)
    )


def share_of(terms: SumTerms, num_examples: int) -> float:
    """Return by how much a client weighs: all together by 1 at most, so that no sum overflows."""
    weight = min(num_examples, terms.most_examples) / terms.most_examples if terms.most_examples else 1.0
    return weight / len(terms.members)


@dataclass(frozen=True)
class Written:
    """A client's term of a sum as it is added up.

    Attributes:
        num_clipped: how many numbers were beyond the clip.
        is_scaled: whether the change was larger than the round allows.
    """

    vector: Ring
    num_clipped: int
    is_scaled: bool


def written(term: Tensor, terms: SumTerms, *, index: int, weight: float) -> Written:
    """Return a client's term of a sum as it is added up.

    Args:
        term: float32, of one dimension; the last number of the first sum is one, and stands for the weight.
        terms: of the round.
        index: of the sum.
        weight: see `share_of`.

    Raises:
        ValueError: a number is not finite, or the change would be rounded away: others alone would be summed up.
    """
    within = _within(term, terms) if index == 0 else term
    fixed = _fixed_point(terms, index)
    if index == 0 and 0 < _units(within[:-1], fixed, weight) < _LEAST_UNITS:
        raise ValueError("this client's change would be next to nothing in the sum, and others would be alone in it")
    vector, num_clipped = fixed.written(within.numpy(), weight=weight)
    return Written(vector, num_clipped, within is not term)


def with_weight(total: Ring, terms: SumTerms, weight: float) -> Ring:
    """Return the total of the first sum with the clients' weight in its last place, as it is known without them.

    So no client has its way with all by a number of its own there.
    """
    known = total.copy()
    known[-1:] = _fixed_point(terms, 0).written(np.ones(1, np.float32), weight=weight)[0]
    return known


def require_terms(terms: SumTerms, *, is_uniform: bool) -> None:
    """Check that terms are such as a server makes that means well.

    Raises:
        ValueError: they are not.
    """
    numbers = (*terms.clips, terms.most_change)
    if not all(math.isfinite(number) for number in numbers) or terms.most_change < 0:
        raise ValueError(f"clips or a bound of {numbers}; expected finite numbers")
    if not all(LEAST_CLIP <= clip <= MOST_CLIP for clip in terms.clips):
        raise ValueError(f"clips of {terms.clips}; expected {LEAST_CLIP:g} to {MOST_CLIP:g}")
    if is_uniform != (terms.most_examples == 0):
        raise ValueError("weights that are not the run file's")


def read(total: Ring, terms: SumTerms, *, index: int) -> Tensor:
    """Return the sum that a total stands for, float32."""
    return torch.from_numpy(_fixed_point(terms, index).read(total))


def largest_error(terms: SumTerms, *, index: int, weight: float) -> float:
    """Return the most by which writing in fixed point has moved a mean over clients of this weight together."""
    return _fixed_point(terms, index).largest_error / weight


def packed_vector(vector: Ring) -> bytes:
    """Return a vector as it travels."""
    return save({_VECTOR: vector.view(np.int32)})


def unpacked_vector(packed: bytes, size: int) -> NDArray[np.unsignedinteger]:
    """Return the vector that came.

    Raises:
        ValueError: it is none of that size.
    """
    try:
        vector = load(packed)[_VECTOR]
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError("what came is no vector") from error
    if vector.dtype != np.int32 or vector.shape != (size,):
        raise ValueError(f"a vector of {vector.dtype} {vector.shape}; expected {size:,} numbers of int32")
    return vector.view(np.uint32)


def _fixed_point(terms: SumTerms, index: int) -> FixedPoint:
    return FixedPoint(_BITS, terms.clips[index], len(terms.members))


def _units(change: Tensor, fixed: FixedPoint, weight: float) -> float:
    """Return the root mean square of those numbers of a change that are not zero, in units of the sum's numbers."""
    moved = int(change.count_nonzero())
    return float(change.double().norm()) / math.sqrt(moved) * weight * fixed.scale if moved else 0.0


def _within(term: Tensor, terms: SumTerms) -> Tensor:
    """Return a term whose change is no larger than the round allows: a client's own bound, as nobody sees it."""
    norm = float(term[:-1].double().norm())
    if not terms.most_change or norm <= terms.most_change:
        return term
    return torch.cat([term[:-1] * (terms.most_change / norm), term[-1:]])
