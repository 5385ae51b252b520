"""The floating-point operations of the products of matrices: two for each product of two numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fedlora.training.footprint.grouped import is_grouped

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def flops_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the floating-point operations of one call of an operator; the CPU's attention is unknown to torch's own.

    Args:
        func: the operator's overload, as a TorchDispatchMode gets it.
        args: its arguments.
        kwargs: its arguments by name.
        result: what it returned.
    """
    if func is _ATTENTION:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))  # type: ignore[no-untyped-call]
    if func is _ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))  # type: ignore[no-untyped-call]
    if is_grouped(func):
        # Whichever of its two kinds it is, each row meets one matrix.
        rows_and_in = args[0].shape[0] * args[0].shape[1]
        return int(2 * rows_and_in * args[1].shape[-1])
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))
