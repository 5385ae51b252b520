"""How fast this machine's processor multiplies matrices, as a measure of what a step would take."""

import time

import torch

_SIDE = 1024
_SECONDS = 0.3


def measured_flops_per_second(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of products of square matrices, over about 0.3 seconds."""
    side = 4 * _SIDE if device == "cuda" else _SIDE
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    left @ right
    count, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < _SECONDS:
        product = left @ right
        if device != "cpu":
            product[0, 0].item()
        count += 1
    return 2 * side**3 * count / seconds
