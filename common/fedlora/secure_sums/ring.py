"""Numbers in fixed point: integers modulo 2^16 or 2^32, which masks hide perfectly and whose sums are exact."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bits = Literal[16, 32]
# Of 16 or 32 bits; arithmetic of arrays is modulo 2^16 or 2^32.
Ring = NDArray[np.unsignedinteger[Any]]

_CHUNK = 1 << 18


@dataclass(frozen=True)
class FixedPoint:
    """How the numbers of one sum are written.

    The terms of a sum are weighted, and the weights' sum is at most 1: so the sum of numbers within the clip is within
    the clip, and no bit is lost to the number of terms.

    Attributes:
        bits: of each number.
        clip: numbers beyond -clip and clip are sent as these.
        num_terms: of the sum; each is rounded by itself.
    """

    bits: Bits
    clip: float
    num_terms: int

    def __post_init__(self) -> None:
        """Check what is given.

        Raises:
            ValueError: no number could be written.
        """
        if not (self.clip > 0 and math.isfinite(self.clip)):
            raise ValueError(f"clip {self.clip}: expected a positive number")
        if not 0 < self.num_terms < 1 << (self.bits - 2):
            raise ValueError(f"{self.num_terms} terms of {self.bits} bits: expected 1 to {(1 << (self.bits - 2)) - 1}")

    @property
    def scale(self) -> float:
        """What a number is multiplied by. Roundings of all terms together may add half a unit each."""
        return ((1 << (self.bits - 1)) - 1 - self.num_terms) / self.clip

    @property
    def largest_error(self) -> float:
        """The most by which a sum of numbers within the clip is off: half a unit for each term."""
        return self.num_terms / 2 / self.scale

    @property
    def kind(self) -> "np.dtype[np.unsignedinteger[Any]]":
        """The type of the ring's numbers."""
        return np.dtype(np.uint16) if self.bits == 16 else np.dtype(np.uint32)

    def written(self, numbers: NDArray[np.float32], *, weight: float) -> tuple[Ring, int]:
        """Return a term of the sum, `weight` times the numbers, and how many of these were clipped.

        Args:
            numbers: finite, of any shape.
            weight: 0 to 1.

        Raises:
            ValueError: a number is not finite, or the weight is none.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight}: expected 0 to 1")
        flat = numbers.reshape(-1)
        term = np.empty(flat.shape, self.kind)
        num_clipped = 0
        for start in range(0, flat.size, _CHUNK):
            chunk = flat[start : start + _CHUNK].astype(np.float64)
            # A sum of them all is finite only if each is, but for numbers that no float32 can be.
            if not np.isfinite(chunk.sum()):
                raise ValueError("a number is not finite")
            num_clipped += int(np.count_nonzero(np.abs(chunk) > self.clip))
            np.clip(chunk, -self.clip, self.clip, out=chunk)
            chunk *= weight * self.scale
            # By way of the signed integers: a negative float has no unsigned one.
            term[start : start + _CHUNK] = np.rint(chunk, out=chunk).astype(np.int64).astype(self.kind)
        return term.reshape(numbers.shape), num_clipped

    def read(self, total: Ring) -> NDArray[np.float32]:
        """Return the sum that a total of terms stands for."""
        signed = total.view(np.int16 if self.bits == 16 else np.int32)
        return (signed.astype(np.float64) / self.scale).astype(np.float32)
