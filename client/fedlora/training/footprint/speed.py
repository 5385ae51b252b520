"""How fast this machine's processor multiplies matrices, as a measure of what a step would take."""

import time

import torch

# A step has more to do than its products, and its matrices are smaller: on a CPU of two cores the steps of three models
# (DINOv2-small, MiniLM, a Llama of 10 million) reached 0.43 to 0.61 of it.
_REACHED_SHARE = 0.5
_SIDE = 1024
_SECONDS = 0.3


def estimated_seconds(flops: int, device: str, dtype: torch.dtype) -> float:
    """Return about how long a step's operations take on this machine; the truth may be half or twice as long."""
    return flops / (_REACHED_SHARE * measured_flops_per_second(device, dtype))


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
