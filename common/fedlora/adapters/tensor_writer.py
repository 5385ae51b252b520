"""Safetensors written byte for byte as the library writes them, with metadata whose entries keep their order.

The library writes several entries in an order that differs from call to call; and its writer of files takes all tensors
at once, where this one takes them one by one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fedlora.common.errors import AdapterError
from fedlora.common.files import open_replacing

# In the library's order: the tensors of the first type come first.
_TYPE_NAMES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
MAX_HEADER_BYTES = 10_000_000
_ORDER = {dtype: place for place, dtype in enumerate(_TYPE_NAMES)}


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return contiguous tensors by key, and the entries of the header in their order, as safetensors.

    Raises:
        AdapterError: so many tensors that no reader would accept the header.
    """
    header, begins, size_bytes = _header(tensors, metadata)
    content = bytearray(size_bytes)
    content[: 8 + len(header)] = len(header).to_bytes(8, "little") + header
    for key, tensor in tensors.items():
        if tensor.numel():
            content[begins[key] : begins[key] + tensor.nbytes] = _raw(tensor)
    return bytes(content)


@contextmanager
def writing_tensors(
    path: Path, outline: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[Callable[[str, Tensor], None]]:
    """Return a function that writes one tensor by its key; the file appears when the block ends well.

    Args:
        outline: by key, tensors of the shape and type of those to come; each must come once, in any order.
        metadata: the entries of the header, in their order.

    Raises:
        AdapterError: so many tensors that no reader would accept the header.
        StoreError: the file cannot be written.
        ValueError: a tensor is not as in `outline`, or did not come.
    """
    header, begins, size_bytes = _header(outline, metadata)
    missing = set(outline)
    with open_replacing(path, size_bytes=size_bytes) as file:

        def write(key: str, tensor: Tensor) -> None:
            expected = outline[key]
            if (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
                was, announced = (f"{one.dtype} {tuple(one.shape)}" for one in (tensor, expected))
                raise ValueError(f"{key} is {was}, announced as {announced}")
            missing.remove(key)
            if tensor.numel():
                file.seek(begins[key])
                file.write(_raw(tensor))

        file.write(len(header).to_bytes(8, "little") + header)
        yield write
        if missing:
            raise ValueError(f"{len(missing)} tensors were announced and not written, among them {min(missing)}")


def _header(outline: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int], int]:
    """Return the header, each tensor's first byte in the file, and the file's size."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for key in sorted(outline, key=lambda key: (_ORDER[outline[key].dtype], key)):
        tensor, begin = outline[key], end
        end += tensor.nbytes
        entries[key] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begins[key] = begin
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise AdapterError(f"{len(outline):,} tensors would take a header of {len(header):,} bytes")
    return header, {key: 8 + len(header) + begin for key, begin in begins.items()}, 8 + len(header) + end


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
