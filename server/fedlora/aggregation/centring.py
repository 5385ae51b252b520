"""Weighted means of tensors, and a layer's updates as mean and deviations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedlora.adapters import LoraLayer
from fedlora.aggregation.method import CentredUpdate


def weighted_mean(tensors: Sequence[Tensor], *, p: Sequence[float]) -> Tensor:
    """Return sum_i p_i tensors_i, float32, or float64 if a tensor is float64.

    The sum is taken in float64 and rounded once: in bf16 (8 bits of mantissa) a sum over 100 clients
    loses the small ones, and equal float32 clients would not give back that client.

    Args:
        tensors: of one shape, of any dtype.
        p: one weight for each tensor, with sum 1.
    """
    total = torch.zeros(tensors[0].shape, dtype=torch.float64, device=tensors[0].device)
    for tensor, weight in zip(tensors, p, strict=True):
        total.add_(tensor, alpha=weight)
    return total.to(_working_dtype(tensors))


def centre(layers: Sequence[LoraLayer], *, p: Sequence[float]) -> CentredUpdate:
    """Return the mean and the deviations of one layer's pairs, which have the same shapes.

    Args:
        layers: the layer of every client.
        p: one weight for each client, with sum 1.
    """
    mean_A = weighted_mean([layer.A for layer in layers], p=p)
    mean_B = weighted_mean([layer.B for layer in layers], p=p)
    dtype = torch.promote_types(mean_A.dtype, mean_B.dtype)
    mean_A, mean_B = mean_A.to(dtype), mean_B.to(dtype)
    (rank, in_features), out_features, num_clients = mean_A.shape, mean_B.shape[0], len(layers)
    P = mean_B.new_empty(out_features, num_clients, rank)
    Q = mean_A.new_empty(num_clients, rank, in_features)
    for index, layer in enumerate(layers):
        torch.sub(layer.B, mean_B, out=P[:, index])
        torch.sub(layer.A, mean_A, out=Q[index])
    Q *= Q.new_tensor(p)[:, None, None]
    return CentredUpdate(mean_A, mean_B, P.flatten(1), Q.flatten(0, 1))


def _working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
