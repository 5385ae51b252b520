"""Random numbers by purpose, so that a run's result depends on neither timing, workers nor restarts.

Every draw of a run comes from a stream named by (seed, round, client, purpose). Nothing is drawn
from global state, and nothing depends on Flower's node ids, which differ from run to run.
"""

import hashlib

import numpy as np


def stream_seed(seed: int, *, purpose: str, round: int = 0, client: str = "") -> int:
    """Return the seed, below 2**63, of the stream for one purpose of one client in one round."""
    name = f"{seed}/{round}/{client}/{purpose}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) >> 1


def stream(seed: int, *, purpose: str, round: int = 0, client: str = "") -> np.random.Generator:
    """Return the numpy generator of the stream for one purpose of one client in one round."""
    return np.random.default_rng(stream_seed(seed, purpose=purpose, round=round, client=client))
