"""LoRA-FAIR's cosine objective by SGD, as published code does it: for comparison with the exact solution only.

It forms the full update and takes minutes where the exact solution takes milliseconds.
"""

from typing import Literal

import torch
from torch import Tensor

Axis = Literal["all", "rows", "columns"]


def correct_by_sgd(
    M: Tensor,
    mean_A: Tensor,
    mean_B: Tensor,
    *,
    penalty: float,
    steps: int,
    learning_rate: float,
    start: float,
    axis: Axis,
) -> Tensor:
    """Return B' (out_features, rank) after plain SGD on 1 - cos(M, B' mean_A) + penalty |B' - mean_B|^2.

    Args:
        M: the ideal update, (out_features, in_features).
        mean_A: (rank, in_features).
        mean_B: (out_features, rank).
        start: standard deviation of the random dB to start from, drawn from a fixed seed.
        axis: "all": the cosine of the whole matrices; "rows" or "columns": the mean of the cosines along them.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(mean_B.shape, generator=generator, dtype=torch.float64).to(mean_B)
    dB = (start * noise).requires_grad_()
    optimizer = torch.optim.SGD([dB], lr=learning_rate)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            X = (mean_B + dB) @ mean_A
            loss = 1 - _cosine(M, X, axis) + penalty * dB.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return mean_B + dB.detach()


def _cosine(M: Tensor, X: Tensor, axis: Axis) -> Tensor:
    if axis == "all":
        return torch.cosine_similarity(M.flatten(), X.flatten(), dim=0)
    return torch.cosine_similarity(M, X, dim=1 if axis == "rows" else 0).mean()
