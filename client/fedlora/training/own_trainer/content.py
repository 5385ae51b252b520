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


def _add(digest: Any, value: object, within: tuple[int, ...] = ()) -> None:
    """Add a value to a digest; `within` are the identities of what it is a part of, outermost first."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().float().numpy() if value.is_floating_point() else value.detach().cpu().numpy()
    digest.update(f"{type(value).__name__} ".encode())
    if id(value) in within:
        # A value that holds itself, which has no end.
        digest.update(f"{within.index(id(value))} ".encode())
        return
    within = (*within, id(value))
    match value:
        case Mapping():
            digest.update(f"{len(value)} ".encode())
            for key, each in value.items():
                _add(digest, key, within)
                _add(digest, each, within)
        case bytes():
            digest.update(len(value).to_bytes(8) + value)
        case str():
            _add(digest, value.encode(), within)
        case np.ndarray() if value.dtype != object:
            digest.update(f"{value.dtype} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes())
        case np.ndarray():
            digest.update(f"{value.shape} ".encode())
            _add(digest, value.tolist(), within)
        case Sequence():
            digest.update(f"{len(value)} ".encode())
            for each in value:
                _add(digest, each, within)
        case None | bool() | int() | float():
            digest.update(f"{value!r} ".encode())
        case _ if hasattr(value, "__array_interface__"):  # A picture of Pillow's.
            _add(digest, np.asarray(value), within)
        case _ if hasattr(value, "__dict__"):
            _add(digest, vars(value), within)
        case _:
            # What does not say what it is made of is another in each process, and so never taken for the same.
            digest.update(repr(value).encode())
