"""The examples of a batch, each as a batch of its own: what it consists of, its shape, and the key of what it gives."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

# The one input that is not by example: the places of which the head is to give logits.
ABOVE = "logits_to_keep"
# Padded examples are of so many tokens or a multiple.
_TOKENS = 16

Row = dict[str, Tensor]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def rows_of(inputs: Mapping[str, Tensor]) -> list[Row]:
    """Return each example of a batch, as a batch of its own without padding."""
    mask = inputs.get("attention_mask")
    return [_row(inputs, place, mask) for place in range(len(next(iter(inputs.values()))))]


def _row(inputs: Mapping[str, Tensor], place: int, mask: Tensor | None) -> Row:
    row = {name: tensor[place : place + 1] for name, tensor in inputs.items() if name != ABOVE}
    if mask is None:
        return row
    is_token = mask[place].bool()
    return {name: part[:, is_token] if inputs[name].shape[:2] == mask.shape else part for name, part in row.items()}


def shapes_of(row: Row) -> Shapes:
    """Return what is equal for rows that can be computed in one batch."""
    return tuple((name, tuple(tensor.shape)) for name, tensor in row.items())


def padded_row(row: Row) -> Row:
    """Return an example's tokens filled up with masked ones to a multiple, so that many have one shape."""
    mask = row.get("attention_mask")
    if mask is None:
        return dict(row)
    missing = -mask.shape[1] % _TOKENS
    return {
        name: functional.pad(tensor, (0, missing)) if tensor.shape == mask.shape else tensor
        for name, tensor in row.items()
    }


def key_of(row: Row, origin: bytes) -> bytes:
    """Return what is equal for equal examples that are computed alike: on one kind of device, in one precision.

    Args:
        origin: equal for equal weights.
    """
    digest = hashlib.blake2b(origin, digest_size=16)
    device_type = next(iter(row.values())).device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else "whole"
    digest.update(f" {device_type} {dtype}".encode())
    for name, tensor in sorted(row.items()):
        digest.update(f" {name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.digest()
