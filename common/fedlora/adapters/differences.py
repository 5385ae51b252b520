"""How an adapter travels: as the difference to a reference file that both sides hold, rounded, file to file.

An encoded file is a safetensors file with the adapter's own configuration, the precision and the reference's sha256 in
its header. For each tensor NAME of the adapter it holds one of

    whole.NAME                        the tensor itself, in its own type
    difference.NAME                   bfloat16: tensor - reference
    difference.NAME and scale.NAME    int8 and float32: tensor - reference is scale times the numbers of each row

and every tensor is read, worked on and written alone, so that memory holds a few copies of the largest one.
An optimiser's moments always go whole, in bfloat16 unless the precision is float32 (see `moments`).

The difference is rounded, not the tensor: a correction of 1e-4 of B, as LoRA-FAIR makes, is below what B itself
would show in bfloat16. What rounding takes can be kept and added to the next difference (error feedback, Seide et
al. 2014; Karimireddy et al., arXiv 1901.09847), so that over the rounds nothing is lost.

All arithmetic is float32, one operation after another, elementwise: both sides get the same bytes.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedlora.adapters.packed import METADATA_KEY, metadata_of, open_tensors, packed_metadata
from fedlora.adapters.tensor_file import TensorFile, is_moment
from fedlora.adapters.tensor_writer import MAX_HEADER_BYTES, writing_tensors
from fedlora.common.errors import AdapterError
from fedlora.common.files import sha256_of

Precision = Literal["float32", "bfloat16", "int8"]
_Form = Literal["whole", "bfloat16", "int8"]

_FORMS: dict[str, tuple[_Form, ...]] = {
    "float32": ("whole",),
    "bfloat16": ("whole", "bfloat16"),
    "int8": ("whole", "bfloat16", "int8"),
}
_PRECISION, _REFERENCE = "precision", "reference"
# Up to here neither a difference, nor its rounding, nor what comes out can leave the range of float32, 3.4e38.
_MOST = 1e38


def encode_file(
    source: Path,
    target: Path,
    *,
    reference: Path | None,
    precision: Precision,
    residual: Path | None = None,
    new_residual: Path | None = None,
    reference_sha256: str | None = None,
) -> None:
    """Write to `target` what makes `source` of `reference`.

    A tensor goes whole, and exact, where the reference has none of its name and shape, where it or its partner is no
    floating-point tensor or holds NaN, infinity or values beyond 1e38, and with the precision float32. In int8 a
    tensor goes as bfloat16 where its scales would take more than int8 saves.

    Args:
        source: a packed adapter; its tensors may be of any shape and type.
        reference: a packed adapter that the receiver holds; without one every tensor goes whole.
        residual: float32 tensors that are added to the differences before these are rounded; the file need not be
            there, and neither need all tensors. Those of another shape or beyond 1e38 count as absent.
        new_residual: where to write what this encoding left out, the next `residual`. That of tensors that go whole
            is kept for later. It may be the same path as `residual`, but then encoding the same update again adds
            another residual to it.
        reference_sha256: of the reference, where it is known; otherwise the file is hashed.

    Raises:
        AdapterError: a file is no safetensors file, or `source` no packed adapter.
        StoreError: a file cannot be written.
    """
    config, tensors = metadata_of(source)[METADATA_KEY], open_tensors(source)
    base = open_tensors(reference) if reference is not None and precision != "float32" else None
    rest = open_tensors(residual) if residual is not None and residual.is_file() else None
    outline = {name: _travelling(name, tensor, precision) for name, tensor in _outline(tensors).items()}
    forms = {name: _form_of(name, tensor, tensors, base, precision) for name, tensor in outline.items()}
    left = {} if rest is None else {name: rest for name, tensor in outline.items() if _is_usable(name, tensor, rest)}
    digest = "" if base is None else reference_sha256 or sha256_of([base.path])
    metadata = {METADATA_KEY: config, _PRECISION: precision, _REFERENCE: digest}
    to_be_left = {
        name: torch.empty(tensor.shape, dtype=torch.float32, device="meta")
        for name, tensor in outline.items()
        if forms[name] != "whole" or name in left
    }
    with ExitStack() as stack:
        write = stack.enter_context(writing_tensors(target, _encoded_outline(outline, forms), metadata))
        leave = None if new_residual is None else stack.enter_context(writing_tensors(new_residual, to_be_left, {}))
        for name, form in forms.items():
            if base is None or form == "whole":
                write(f"whole.{name}", _travelling(name, tensors.read(name), precision))
                if leave is not None and name in left:
                    leave(name, left[name].read(name).float())
                continue
            known = base.read(name).float()
            wanted = tensors.read(name).float().sub_(known)
            if name in left:
                wanted += left[name].read(name).float()
            difference, scale = (wanted.bfloat16(), None) if form == "bfloat16" else _to_int8(wanted)
            write(f"difference.{name}", difference)
            if scale is not None:
                write(f"scale.{name}", scale)
            if leave is not None:
                # Not only the rounding to 8 bits: also the sum that the receiver makes is rounded.
                leave(name, wanted.sub_(_restored(known, difference, scale).sub_(known)))


def decode_file(encoded: Path, target: Path, *, reference: Path | None, reference_sha256: str | None = None) -> None:
    """Write to `target` the packed adapter that an encoded file makes of `reference`.

    The bytes are those that `pack` would write of the same tensors: float32 where a difference came, the sender's own
    type where the tensor came whole.

    Args:
        reference: the packed adapter that the sender named; not needed where every tensor goes whole.
        reference_sha256: of the reference, where it is known; otherwise the file is hashed.

    Raises:
        AdapterError: the file is not encoded so, is cut short, or does not fit the reference; nothing is written.
        StoreError: the target cannot be written.
    """
    metadata, tensors = metadata_of(encoded), open_tensors(encoded)
    precision, digest = metadata.get(_PRECISION, ""), metadata.get(_REFERENCE, "")
    if precision not in _FORMS:
        raise AdapterError(
            f"{encoded}: encoded in the precision {precision[:20]!r}; expected one of {', '.join(_FORMS)}"
        )
    base = _named_reference(encoded, digest, reference, reference_sha256) if digest else None
    parts = _parts_of(tensors)
    outline = {name: _checked(name, own, base, precision, origin=encoded) for name, own in parts.items()}
    with writing_tensors(target, outline, packed_metadata(metadata[METADATA_KEY])) as write:
        for name, own in parts.items():
            if base is None or own.whole is not None:
                write(name, tensors.read(f"whole.{name}"))
                continue
            scale = None if own.scale is None else tensors.read(f"scale.{name}")
            if scale is not None and not scale.isfinite().all():
                raise AdapterError(f"{encoded}: scale.{name} is not finite")
            write(name, _restored(base.read(name).float(), tensors.read(f"difference.{name}"), scale))


def max_encoded_bytes(packed: Path | int) -> int:
    """Return the most bytes that an adapter can take when it is encoded, in any precision and with any reference.

    Args:
        packed: the packed adapter, or its size in bytes; of a size the header's share is not known, and the bound is
            up to 30 MB higher.

    Raises:
        AdapterError: the file is no packed adapter.
    """
    # No tensor's numbers take more than before. A tensor's entry in the header, of 50 bytes at least, becomes at most
    # two, each at most as long as it was but for a prefix (11), a longer type (1) and longer offsets (38).
    if isinstance(packed, int):
        return packed + 3 * min(packed, MAX_HEADER_BYTES) + 256
    metadata_of(packed)
    with open(packed, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    return packed.stat().st_size + 3 * header_bytes + 256


@dataclass(frozen=True)
class _Parts:
    """What an encoded file has for one tensor, as tensors without values."""

    whole: Tensor | None = None
    difference: Tensor | None = None
    scale: Tensor | None = None


def _outline(tensors: TensorFile) -> dict[str, Tensor]:
    return {name: tensors.empty(name) for name in tensors.shapes}


def _travelling(name: str, tensor: Tensor, precision: Precision) -> Tensor:
    """Return a tensor in the type in which it goes whole."""
    return tensor.bfloat16() if is_moment(name) and precision != "float32" and tensor.dim() else tensor


def _form_of(name: str, tensor: Tensor, tensors: TensorFile, base: TensorFile | None, precision: Precision) -> _Form:
    if base is None or is_moment(name) or not tensor.is_floating_point() or not _is_usable(name, tensor, base):
        return "whole"
    if not _is_moderate(tensors.read(name)):
        return "whole"
    num_scales = tensor[..., 0].numel() if tensor.dim() and tensor.numel() else 1
    return "int8" if precision == "int8" and 4 * num_scales < tensor.numel() else "bfloat16"


def _is_usable(name: str, tensor: Tensor, other: TensorFile) -> bool:
    """Return whether a file has a partner for the tensor of that name: of its shape, floating-point, within range."""
    if other.shapes.get(name) != tuple(tensor.shape) or not other.empty(name).is_floating_point():
        return False
    return _is_moderate(other.read(name))


def _is_moderate(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    least, largest = tensor.aminmax()  # NaN where there is one.
    return bool(least >= -_MOST and largest <= _MOST)


def _encoded_outline(outline: Mapping[str, Tensor], forms: Mapping[str, _Form]) -> dict[str, Tensor]:
    encoded: dict[str, Tensor] = {}
    for name, tensor in outline.items():
        if forms[name] == "whole":
            encoded[f"whole.{name}"] = tensor
            continue
        dtype = torch.bfloat16 if forms[name] == "bfloat16" else torch.int8
        encoded[f"difference.{name}"] = torch.empty(tensor.shape, dtype=dtype, device="meta")
        if forms[name] == "int8":
            encoded[f"scale.{name}"] = torch.empty(tensor.shape[:-1], device="meta")
    return encoded


def _to_int8(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127 and the scale of each row, of a difference of one dimension or more."""
    least, largest = torch.aminmax(wanted, dim=-1, keepdim=True)
    scale = torch.maximum(largest, -least) / 127
    # The scale is 0 also in a row of numbers so small that a 127th of them is none.
    numbers = (wanted / scale.where(scale > 0, 1)).round_().clamp_(-127, 127)
    return numbers.to(torch.int8), scale.squeeze(-1)


def _restored(known: Tensor, difference: Tensor, scale: Tensor | None) -> Tensor:
    """Return reference + difference, both (..., n), in float32; scale (...)."""
    change = difference.float()
    if scale is not None:
        change *= scale.unsqueeze(-1)
    return change.add_(known)


def _named_reference(encoded: Path, digest: str, reference: Path | None, known_sha256: str | None) -> TensorFile:
    if reference is None:
        raise AdapterError(f"{encoded}: a difference to the adapter {digest[:64]!r}, which is not held here")
    base = open_tensors(reference)
    found = known_sha256 or sha256_of([reference])
    if found != digest:
        raise AdapterError(f"{encoded}: a difference to the adapter {digest[:64]!r}; held here is {found}")
    return base


def _parts_of(tensors: TensorFile) -> dict[str, _Parts]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _outline(tensors).items():
        kind, _, name = key.partition(".")
        if kind not in ("whole", "difference", "scale") or name in ("", "__metadata__"):
            raise AdapterError(f"{tensors.path}: tensor {key}; expected whole.NAME, difference.NAME or scale.NAME")
        found.setdefault(name, {})[kind] = tensor
    return {name: _Parts(**parts) for name, parts in found.items()}


def _checked(name: str, own: _Parts, base: TensorFile | None, precision: str, *, origin: Path) -> Tensor:
    """Return the shape and type of the tensor that its parts make.

    Raises:
        AdapterError: they make none.
    """
    difference, scale = own.difference, own.scale
    if own.whole is not None:
        if difference is not None or scale is not None:
            raise AdapterError(f"{origin}: {name} is there whole and as a difference")
        return own.whole
    if difference is None:
        raise AdapterError(f"{origin}: scale.{name} without its difference.{name}")
    form = {torch.bfloat16: "bfloat16", torch.int8: "int8"}.get(difference.dtype, str(difference.dtype))
    if form not in _FORMS[precision] or (form == "int8" and not difference.dim()):
        raise AdapterError(
            f"{origin}: difference.{name} {tuple(difference.shape)} in {form}; expected {precision} and, of int8, rows"
        )
    if base is None or base.shapes.get(name) != tuple(difference.shape) or not base.empty(name).is_floating_point():
        held = "no reference" if base is None else f"{base.shapes.get(name, 'no such tensor')} in the reference"
        raise AdapterError(f"{origin}: difference.{name} {tuple(difference.shape)} to {held}")
    expected = (torch.float32, difference.shape[:-1]) if form == "int8" else None
    if expected != (None if scale is None else (scale.dtype, scale.shape)):
        was = "none" if scale is None else f"{scale.dtype} {tuple(scale.shape)}"
        wanted = "none" if expected is None else f"torch.float32 {tuple(difference.shape[:-1])}"
        raise AdapterError(f"{origin}: difference.{name} {tuple(difference.shape)} with the scale {was}; {wanted} fits")
    return torch.empty(difference.shape, dtype=torch.float32, device="meta")
