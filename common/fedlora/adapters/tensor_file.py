"""A safetensors file whose tensors are read one by one, each whenever it is asked for.

The library maps a file into memory, where every page that was read once stays counted until the
file is closed: with many adapters open, that is all of them. Here a tensor's bytes are read into
memory of its own and are gone with it. The library still checks the file first.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedlora.common.errors import AdapterError
from fedlora.common.open_files import require_descriptors

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip

_Place = tuple[torch.dtype, tuple[int, ...], int, int]


def is_moment(key: str) -> bool:
    """Return whether a tensor is an optimiser's moment, by its key, as `moments` says."""
    return "/" in key


class TensorFile:
    """The tensors in a safetensors file, by key."""

    def __init__(self, path: Path, *, only: Callable[[str], bool] | None = None) -> None:
        """Check the file and read its header.

        Args:
            only: says of a key whether its tensor is wanted; the others are as if they were not there.

        Raises:
            AdapterError: it is not a safetensors file, or holds a type of number that torch does not have.
        """
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                pass
            with open(path, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = file.read(size)
        except SafetensorError as error:
            raise AdapterError(f"{path}: not a safetensors file ({error})") from error
        except OSError as error:
            require_descriptors(error, kind=AdapterError)
            raise AdapterError(f"{path}: cannot be read ({error.strerror or error})") from error
        self._begin = 8 + size
        try:
            # Clients of one run have equal headers, and a thousand copies of one would be most of the memory.
            self._places = _places(header)
        except KeyError as error:
            raise AdapterError(f"{path}: numbers of the type {error}; expected floating-point tensors") from error
        if only is not None:
            self._places = {key: entry for key, entry in self._places.items() if only(key)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes by key."""
        return {key: shape for key, (_, shape, _, _) in self._places.items()}

    def read(self, key: str) -> Tensor:
        """Return a tensor, in memory of its own.

        Raises:
            AdapterError: the file is shorter than it was, or gone.
        """
        dtype, shape, begin, end = self._places[key]
        tensor = torch.empty(shape, dtype=dtype)
        if end == begin:
            return tensor
        target = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self._begin + begin)
                num_read = 0
                while num_read < end - begin and (got := file.readinto(target[num_read:])):
                    num_read += got
        except OSError as error:
            require_descriptors(error, kind=AdapterError)
            raise AdapterError(f"{self.path}: cannot be read ({error.strerror})") from error
        if num_read < end - begin:
            raise AdapterError(f"{self.path}: ends within {key}; it has changed since it was opened")
        return tensor

    def empty(self, key: str) -> Tensor:
        """Return a tensor of the same shape and type that has no values and takes no memory."""
        dtype, shape, _, _ = self._places[key]
        return torch.empty(shape, dtype=dtype, device="meta")


@lru_cache(maxsize=8)
def _places(header: bytes) -> dict[str, _Place]:
    """Return each tensor's type, shape and first and last byte behind the header."""
    entries = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
    return {
        key: (_DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"]) for key, entry in entries.items()
    }
