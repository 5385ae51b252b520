"""What the clients' pairs span together, found from sums over them: in memory that does not depend on their number.

Halko, Martinsson, Tropp: "Finding Structure with Randomness", 2011, arXiv 0909.4061, algorithm 4.4.
"""

from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor

from fedlora.algebra.low_rank import orthonormal, random_directions
from fedlora.methods.method import ClientPair, Contribution, Product

# So many more directions than are wanted make the first pass nearly as good as it can be.
OVERSAMPLING = 8


def sketched(
    known: tuple[Tensor, Tensor], *, rank: int, num_iterations: int, holds_known: bool = False
) -> Generator[Contribution, Tensor, tuple[Tensor, Tensor]]:
    """Return Q (out_features, n) and Q^T E (n, in_features), E being the clients' sum_i p_i dB_i dA_i.

    Q is orthonormal, and close to what the left singular vectors of the `rank` largest singular values of known + E
    span. How close depends on how fast the singular values fall, and on the passes back and forth: each turns Q
    towards them.

    Args:
        known: a product without the clients, as factors (out_features, m) and (m, in_features).
        rank: how many singular vectors are wanted; n is 8 more.
        num_iterations: how many passes back and forth follow the first; each is two sums.
        holds_known: whether Q spans the left factor of `known` too, n being m more.
    """
    left, right = known
    rows = random_directions(right, rank + OVERSAMPLING)
    for remaining in range(num_iterations, -1, -1):
        E_rows = yield partial(_E_times, rows=rows)
        columns = left @ (right @ rows) + E_rows
        Q = orthonormal(torch.cat([left, columns], 1) if holds_known else columns)
        Q_E = yield partial(_times_E, columns=Q)
        if remaining:
            rows = orthonormal(((Q.T @ left) @ right + Q_E).T)
    return Q, Q_E


def _E_times(client: ClientPair, *, rows: Tensor) -> Product:
    return Product(client.dB, client.dA @ rows)


def _times_E(client: ClientPair, *, columns: Tensor) -> Product:
    return Product(columns.T @ client.dB, client.dA)
