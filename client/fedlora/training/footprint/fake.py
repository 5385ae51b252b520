"""A module whose parameters have a shape and a type but no numbers: on the meta device, or as fake tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class StayingOnMeta(TorchDispatchMode):
    """While it is entered, what copies a tensor without numbers to a device gives another without numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            kwargs["device"] = torch.device("meta")
        return func(*args, **kwargs)


def move_to(module: nn.Module, device: str) -> None:
    """Replace all parameters and buffers by empty ones on `device`; within a FakeTensorMode they are fake.

    `to` would leave modules behind that share their parameters, and cannot take fake tensors back to meta.
    """
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    moved[id(tensor)] = _empty(tensor, device)
                table[name] = moved[id(tensor)]


def _empty(tensor: Tensor, device: str) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty
