"""What an aggregation method keeps from round to round, as a file: its tensors by layer and name."""

from collections import defaultdict

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedlora.methods import MethodState


def pack_state(state: MethodState) -> bytes:
    """Return the state as safetensors."""
    return save(
        # Safetensors takes no two tensors that share their memory, such as a mean that is kept under two names.
        {
            f"{path}.{name}": tensor.clone(memory_format=torch.contiguous_format)
            for path, tensors in state.items()
            for name, tensor in tensors.items()
        }
    )


def unpack_state(packed: bytes) -> MethodState:
    """Return the state in safetensors.

    Raises:
        ValueError: it is damaged.
    """
    state: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    try:
        tensors = load(packed)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        state[path][name] = tensor
    return dict(state)
