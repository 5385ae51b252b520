"""What CUDA does otherwise than the CPU, as far as it counts for memory: for a plan on a machine that has none."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# torch's allocator rounds every tensor up to it.
CUDA_BLOCK_BYTES = 512
# cuBLAS takes so much at its first product, through torch's allocator; on GPUs before Hopper it is 8 MiB.
CUBLAS_BYTES = 32 * 2**20

_IN_FLOAT32 = frozenset(
    {
        functional.layer_norm, functional.group_norm, functional.softmax, functional.log_softmax, torch.softmax,
        torch.log_softmax, Tensor.softmax, Tensor.log_softmax, Tensor.pow, torch.pow, torch.rsqrt, Tensor.rsqrt,
        Tensor.sum, torch.sum, torch.exp, Tensor.exp, functional.cosine_similarity, torch.cumsum, Tensor.cumsum,
    }
)  # fmt: skip


class CudaAutocast(TorchFunctionMode):
    """While it is entered, the CPU's autocast computes in float32 what CUDA's does: norms, softmax, sums."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_in_float32, (args, kwargs))
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _in_float32(value: Any) -> Any:
    is_short = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_short else value
