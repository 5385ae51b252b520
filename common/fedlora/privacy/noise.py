"""Gaussian noise that nobody can work out: ChaCha20's stream under a key from the operating system, forgotten at once.

Never from a run's seed: who knows the seed would subtract the noise.

What is released is a float, and floats leak: sums of a value and a float's noise do not reach every number, so that the
last bits of one can rule out whole data sets (Mironov 2012, doi 10.1145/2382196.2382264). Noise and sum are therefore
made in float64, and what is released is rounded to a grid of a power of two that depends on the noise alone, a 65,000th
to a 130,000th of its standard deviation: the last bits are gone, and the grid's numbers are all reached, but far in the
tails. What remains: a number's chance is that of the true Gaussian to about one in ten million within six standard
deviations, and no noise is larger than 9.5 of them, which a true one is less than once in 10^20 numbers. Exact would be
noise that is drawn from the integers (Canonne, Kamath & Steinke 2020, arXiv 2004.00010).
"""

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from torch import Tensor

# A grid of 2^-16 of the noise: a float32 holds such numbers exactly up to 256 times the noise.
_GRID_BITS = 16
_NONCE = bytes(16)
_KEY_BYTES = 32


def with_noise(values: Tensor, *, standard_deviation: float) -> Tensor:
    """Return values with Gaussian noise, float32, of the same shape and on the same device, rounded to the grid.

    Args:
        values: what is not to be released as it is; any shape, of floats. Best float64: what was rounded before the
            noise came is not made good by it.
        standard_deviation: of the noise on each number.
    """
    if not (math.isfinite(standard_deviation) and standard_deviation > 0):
        raise ValueError(f"noise of standard deviation {standard_deviation}; expected a finite number above 0")
    noise = gaussians(values.numel()).reshape(values.shape)
    grid = 2.0 ** (math.floor(math.log2(standard_deviation)) - _GRID_BITS)
    noisy = values.to("cpu", torch.float64) + standard_deviation * noise
    return (torch.round(noisy / grid) * grid).to(values.device, torch.float32)


def gaussians(num: int) -> Tensor:
    """Return `num` numbers of the standard Gaussian, float64, no two calls' alike (Box & Muller 1958)."""
    half = (num + 1) // 2
    words = np.frombuffer(_stream(16 * half), dtype="<u8").astype(np.float64)
    # Above 0: the logarithm of 0 is none. A whole word goes into the radius, whose tail has few numbers otherwise.
    chance = (words[:half] + 0.5) * 2.0**-64
    angle = words[half:] * (2 * math.pi * 2.0**-64)
    radius = np.sqrt(-2 * np.log(chance))
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(both[:num])


def _stream(size: int) -> bytes:
    """Return so many bytes of a stream of its own."""
    cipher = Cipher(algorithms.ChaCha20(os.urandom(_KEY_BYTES), _NONCE), mode=None)
    return cipher.encryptor().update(bytes(size))
