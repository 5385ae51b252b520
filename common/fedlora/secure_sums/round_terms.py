"""What server and clients alike make of a round's terms: the plan, how numbers are written, what a client weighs.

A vector travels as a safetensors file with one tensor.
"""

import struct
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

from fedlora.common.messages import SumTerms
from fedlora.secure_sums.keys import SumPlan, digest
from fedlora.secure_sums.ring import Bits, FixedPoint, Ring

_VECTOR = "sum"
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


def written(term: Tensor, sizes: Sequence[int], terms: SumTerms, *, index: int, weight: float) -> tuple[Ring, int]:
    """Return a client's term of a sum as it is added up, and how many of its numbers were clipped.

    Args:
        term: float32, of one dimension.
        sizes: of its parts; the last of the first sum, whose number is one, is the weight itself.
        terms: of the round.
        index: of the sum.
        weight: see `share_of`.

    Raises:
        ValueError: a number is not finite.
    """
    fixed = _fixed_point(terms, index)
    return fixed.written(_within(term, sizes, terms, index=index).numpy(), weight=weight)


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


def _within(term: Tensor, sizes: Sequence[int], terms: SumTerms, *, index: int) -> Tensor:
    """Return a term whose change is no larger than the round allows: a client's own bound, as nobody sees it."""
    if index or not terms.most_change:
        return term
    change = term[: sum(sizes) - 1]
    norm = float(change.double().norm())
    if norm <= terms.most_change:
        return term
    return torch.cat([change * (terms.most_change / norm), term[-1:]])
