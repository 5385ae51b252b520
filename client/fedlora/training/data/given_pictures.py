"""Pictures as people have them in Python and in tables: Pillow's, arrays, tensors, and files' bytes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedlora.training.data.pictures import Opened, opened, opened_array, opened_bytes


def opened_input(given: object, size: int, *, beside: Path | None = None) -> Opened:
    """Return a picture that was given in any form, one that will be `size` pixels square.

    A torch tensor of which first and last axis could be channels is taken as (channels, height, width), an array as
    (height, width, channels).

    Args:
        given: Pillow's picture, an array or a tensor, a file's bytes, or the mapping {"bytes", "path"} of Hugging
            Face's Image feature.
        beside: the folder that relative paths start from; without it only a mapping may give a path.

    Raises:
        TypeError: it is none of these.
        ValueError, OSError, SyntaxError: it cannot be read.
    """
    if isinstance(given, Image.Image):
        return opened(given)
    if isinstance(given, np.ndarray):
        return opened_array(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return opened_bytes(bytes(given), size)
    if isinstance(given, Mapping) and given.keys() & {"bytes", "path"}:
        content = given.get("bytes")
        return opened_input(given.get("path") if content is None else content, size, beside=beside or Path())
    if isinstance(given, str | Path) and beside is not None:
        return opened_bytes((beside / given).read_bytes(), size)
    if (values := _array_of_tensor(given)) is not None:
        return opened_array(values, is_channels_first=True)
    raise TypeError(f"a {type(given).__name__}")


def _array_of_tensor(given: Any) -> np.ndarray | None:
    """Return a torch tensor's values, without importing torch; None of anything else."""
    if type(given).__module__.partition(".")[0] not in ("torch", "torchvision") or not hasattr(given, "detach"):
        return None
    values = given.detach().cpu()
    # numpy has no bfloat16.
    is_known = str(values.dtype) != "torch.bfloat16"
    return np.asarray(values.numpy() if is_known else values.float().numpy())
