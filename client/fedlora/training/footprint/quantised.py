"""Stand-ins for the linear layers of bitsandbytes: they take the memory that those take, and compute nothing.

In place of bitsandbytes itself, which needs CUDA and the weights.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_ABSMAX_BLOCK = 64  # weights that share one scale
_SCALES_BLOCK = 256  # scales that share one scale, in double quantisation
_CODE_BYTES = 4 * (16 + 256) + 4


class QuantisedLinear(nn.Module):
    """A frozen linear layer of 4 or 8 bits, whose weight is made whole for each product."""

    def __init__(self, layer: nn.Linear, *, num_bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._num_bits = num_bits
        weight = torch.empty(quantised_bytes(layer.weight.shape, num_bits=num_bits), dtype=torch.uint8)
        self.weight = nn.Parameter(weight.to(layer.weight.device), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return an output (.., out_features) of the input's type, for x (.., in_features)."""
        shape = (self.out_features, self.in_features)
        codes = self.weight[: shape[0] * shape[1]].view(torch.int8).view(shape) if self._num_bits == 8 else None
        result: Tensor = _Product.apply(x.to(torch.bfloat16), shape, self.bias, codes)  # type: ignore[no-untyped-call]
        # PEFT copies it, because bitsandbytes' own may not be changed in place.
        return result.to(x.dtype).clone()


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int], bias: Tensor | None, codes: Tensor | None) -> Tensor:
        ctx.shape = shape
        if codes is not None:
            ctx.save_for_backward(x)
            product = functional.linear(x.to(torch.int8), codes).to(torch.int32)
            return product.to(x.dtype) if bias is None else product.to(x.dtype) + bias
        return functional.linear(x, x.new_empty(shape), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        return gradient @ gradient.new_empty(ctx.shape), None, None, None


def quantised_bytes(shape: Collection[int], *, num_bits: int) -> int:
    """Return the bytes of a weight (out_features, in_features): of 4 bits as NF4 with doubly quantised scales."""
    out_features, in_features = shape
    size = out_features * in_features
    if num_bits == 8:
        return size + 4 * out_features
    num_scales = -(-size // _ABSMAX_BLOCK)
    return -(-size // 2) + num_scales + 4 * -(-num_scales // _SCALES_BLOCK) + _CODE_BYTES


def quantise(module: nn.Module, *, num_bits: int, without: Collection[nn.Module]) -> None:
    """Replace the frozen linear layers of `module` by stand-ins, except for those in `without`."""
    kept = {id(part) for layer in without for part in layer.modules()}
    replaced: dict[int, QuantisedLinear] = {}
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or layer.weight.requires_grad or id(layer) in kept:
                continue
            if id(layer) not in replaced:
                replaced[id(layer)] = QuantisedLinear(layer, num_bits=num_bits)
            parent.add_module(name, replaced[id(layer)])
