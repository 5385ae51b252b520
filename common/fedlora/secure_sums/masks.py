"""What hides a vector: the numbers of a stream that a seed gives, added modulo the ring's size.

The stream is ChaCha20's (RFC 8439) under the seed as its key, from the first block on. A seed is for one vector.
"""

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedlora.secure_sums.ring import Ring

SEED_BYTES = 32
# A piece that stays in a core's cache between the cipher and the sum.
_PIECE_BYTES = 1 << 18
_ZEROS = bytes(_PIECE_BYTES)
_NONCE = bytes(16)


def add_mask(vector: Ring, seed: bytes, *, subtracts: bool = False) -> None:
    """Add the numbers of a seed's stream to a vector, in place; or take them away.

    Args:
        vector: contiguous, of one dimension.
        seed: of `SEED_BYTES`.
        subtracts: whether they are taken away.

    Raises:
        ValueError: the seed has another length, or the vector is of another form.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed of {len(seed)} bytes; expected {SEED_BYTES}")
    if vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError("expected a contiguous vector of one dimension")
    stream = Cipher(algorithms.ChaCha20(seed, _NONCE), mode=None).encryptor()
    piece = memoryview(bytearray(_PIECE_BYTES))
    # On every machine the same: the stream's bytes are little-endian numbers.
    mask = np.frombuffer(piece, dtype=vector.dtype.newbyteorder("<"))
    combine = np.subtract if subtracts else np.add
    for start in range(0, vector.size, mask.size):
        part = vector[start : start + mask.size]
        stream.update_into(_ZEROS[: part.nbytes], piece[: part.nbytes])
        combine(part, mask[: part.size], out=part)
