"""Moments of the clients' optimisers on their way: beside an update, in its file, or in a file of their own.

Each has the key of its tensor, as PEFT saves that, and torch's name for it:
`base_model.model.encoder.layer.0.attention.query.lora_A.weight/exp_avg`. No key of an adapter has a slash.

They always travel whole: of second moments a rounded difference could come out below zero. Where adapters are not sent
in float32, tensors of them are rounded to bfloat16, which keeps their sign and three digits; single numbers stay exact.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedlora.adapters.fit import MAX_VALUE, Misfit, bad_value
from fedlora.adapters.keys import is_trained
from fedlora.adapters.on_demand import OnDemand
from fedlora.adapters.packed import open_tensors, packed_metadata, tensors_in
from fedlora.adapters.tensor_file import is_moment
from fedlora.adapters.tensor_writer import tensor_bytes

# By key and name.
Moments = Mapping[str, Tensor]
# What is shared of an optimiser's state: by torch's name whether it is of the tensor's shape, and not one number.
Form = Mapping[str, bool]


@dataclass(frozen=True)
class Sharing:
    """What clients share of their optimisers, and the most steps that one of them does in a round."""

    form: Form
    most_steps: int


FIRST, SECOND, STEPS = "exp_avg", "exp_avg_sq", "step"
# With m = b1 m + (1 - b1) g and v = b2 v + (1 - b2) g^2, Cauchy and Schwarz say that m^2 is at most so many times v,
# for whatever gradients, and so for any mean over clients.
_BETA_1, _BETA_2 = 0.9, 0.999
_MOST_RATIO = (1 - _BETA_1) ** 2 / (1 - _BETA_2) / (1 - _BETA_1**2 / _BETA_2)
# What rounding to bfloat16 makes of that, and numbers whose square is nothing in float32; far below Adam's epsilon.
_SLACK, _NOTHING = 1.1, 1e-12


def moment_key(key: str, name: str) -> str:
    """Return the key of a tensor's moment of that name."""
    return f"{key}/{name}"


def owner_and_name(full: str) -> tuple[str, str]:
    """Return the key of the tensor that a moment is of, and the moment's name."""
    key, _, name = full.rpartition("/")
    return key, name


def pack_moments(moments: Moments) -> bytes:
    """Return moments by themselves, as a packed adapter without layers, which is what the exchange moves."""
    return tensor_bytes({key: tensor.contiguous() for key, tensor in moments.items()}, packed_metadata("{}"))


def unpack_moments(packed: bytes) -> dict[str, Tensor]:
    """Return the moments in the bytes of a packed adapter, or by themselves.

    Raises:
        AdapterError: the bytes are no safetensors.
    """
    return {key: tensor for key, tensor in tensors_in(packed).items() if is_moment(key)}


def open_moments(path: Path) -> Moments:
    """Return the moments in the file of a packed adapter; each is read whenever it is asked for.

    Raises:
        AdapterError: it is no safetensors file.
    """
    tensors = open_tensors(path, only=is_moment)
    return OnDemand(tensors.shapes, tensors.read, OnDemand(tensors.shapes, tensors.empty))


def examine_moments(
    moments: Moments, like: Mapping[str, Tensor], form: Form, *, required: Collection[str] = (), most_steps: float
) -> Misfit | dict[str, float]:
    """Return how large the moments are by name, or the first in what they cannot be those of an optimiser.

    How large they are is the root of the sum of squares, and of second moments the root of their sum.

    Args:
        like: by key, the tensors that are trained, of which only the shapes are asked.
        required: the keys of those of which there must be moments: whoever has one of a tensor's must have them all.
        most_steps: the most that can have gone into them.
    """
    outline = getattr(moments, "outline", moments)
    if extra := sorted(outline.keys() - {moment_key(key, name) for key in like for name in form}):
        return Misfit("moments", f"{extra[0]} is not among those that are shared")
    owners = sorted({owner_and_name(full)[0] for full in outline} | set(required))
    for key in owners:
        for name, is_whole in form.items():
            found = outline.get(moment_key(key, name))
            if found is None:
                return Misfit("moments", f"{moment_key(key, name)} is missing")
            shape = like[key].shape if is_whole else torch.Size([])
            types = (torch.float32, torch.bfloat16) if is_whole else (torch.float32,)
            if found.shape != shape or found.dtype not in types:
                wanted = f"{tuple(shape)} in float32{' or bfloat16' * is_whole}"
                return Misfit(
                    "moments", f"{moment_key(key, name)} is {tuple(found.shape)} in {found.dtype}; expected {wanted}"
                )
    squares = dict.fromkeys((name for name in form if name != STEPS), 0.0)
    for key in owners:
        values = {name: moments[moment_key(key, name)].double() for name in form}
        if found_bad := _impossible(key, values, most_steps=most_steps):
            return found_bad
        for name in squares:
            # One number stands for as many as the tensor has.
            share = like[key].numel() / max(1, values[name].numel())
            each = values[name] if name == SECOND else values[name].square()
            squares[name] += share * float(each.sum())
    return {name: math.sqrt(total) for name, total in squares.items()}


def _impossible(key: str, values: Mapping[str, Tensor], *, most_steps: float) -> Misfit | None:
    """Return in what these values are no moments, in float64."""
    for name, value in values.items():
        named = [(moment_key(key, name), value)]
        most = {SECOND: MAX_VALUE**2, STEPS: math.inf}.get(name, MAX_VALUE)
        if misfit := bad_value(named, most=most):
            return misfit
        if name in (SECOND, STEPS) and (value < 0).any():
            return Misfit("moments", f"{moment_key(key, name)} holds {float(value.min()):.3g}; expected 0 or more")
    if STEPS in values and float(values[STEPS]) > most_steps:
        counted = f"{float(values[STEPS]):g} steps; expected at most {most_steps:g}"
        return Misfit("moments", f"{moment_key(key, STEPS)} counts {counted}")
    first, second = values.get(FIRST), values.get(SECOND)
    if first is not None and second is not None and first.shape == second.shape:
        beyond = first.square() > _SLACK * _MOST_RATIO * second + _NOTHING**2
        if beyond.any():
            return Misfit("moments", f"{moment_key(key, FIRST)} is larger than any gradients make it beside {SECOND}")
    return None


def cut_moments(moments: Moments, like: Mapping[str, Tensor], form: Form) -> dict[str, Tensor]:
    """Return the moments of the tensors in `like`, of those of a smaller rank the first rows of A and columns of B."""
    found: dict[str, Tensor] = {}
    for key, tensor in like.items():
        for name, is_whole in form.items():
            if (moment := moments.get(moment_key(key, name))) is not None:
                place = filled_by(tensor.shape) if is_whole else ()
                found[moment_key(key, name)] = moment[place].contiguous()
    return found


def filled_by(shape: torch.Size) -> tuple[slice, ...]:
    """Return the part of a tensor of the full rank that one of this shape fills."""
    return tuple(slice(size) for size in shape)


def trained_tensors(tensors: Mapping[str, Tensor], trains: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of an adapter, by key, that a round which trains these factors can have moments of."""
    return {key: tensor for key, tensor in tensors.items() if tensor.is_floating_point() and is_trained(key, trains)}
