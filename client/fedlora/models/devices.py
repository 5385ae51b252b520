"""Where a model is trained."""

import torch

from fedlora.common.errors import ConfigError

# A model is spread over all of them as it is loaded.
ALL_GPUS = "cuda_all"


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == ALL_GPUS:
        # The first of them takes the inputs.
        name = "cuda"
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_here in has.items() if is_here))
    if not has[name]:
        raise ConfigError(f"train.device is {name!r}, but torch finds none here; use auto or cpu")
    return torch.device(name)
