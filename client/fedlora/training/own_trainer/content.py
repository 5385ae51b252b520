"""A digest over examples of any kind, so that others in their place are noticed."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor


def content_digest(examples: Iterable[object]) -> str:
    """Return the hex sha256 over examples: equal ones have an equal one, in another process too."""
    digest = hashlib.sha256()
    for example in examples:
        _add(digest, example)
    return digest.hexdigest()


def _add(digest: Any, value: object) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    digest.update(f"{type(value).__name__} ".encode())
    match value:
        case Mapping():
            digest.update(f"{len(value)} ".encode())
            for key, each in value.items():
                _add(digest, key)
                _add(digest, each)
        case bytes():
            digest.update(len(value).to_bytes(8) + value)
        case str():
            _add(digest, value.encode())
        case np.ndarray() if value.dtype != object:
            digest.update(f"{value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
        case Sequence():
            digest.update(f"{len(value)} ".encode())
            for each in value:
                _add(digest, each)
        case None | bool() | int() | float():
            digest.update(f"{value!r} ".encode())
        case _ if hasattr(value, "__array_interface__"):  # A picture of Pillow's.
            _add(digest, np.asarray(value))
        case _ if hasattr(value, "__dict__"):
            _add(digest, vars(value))
        case _:
            # What does not say what it is made of is another in each process, and so never taken for the same.
            digest.update(repr(value).encode())
