"""The adapter as one array of bytes or one file: safetensors with the configuration in their header."""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from torch import Tensor

from fedlora.adapters.adapter import Adapter
from fedlora.adapters.keys import factor_of, to_state_dict
from fedlora.adapters.peft_format import check_scaling, from_state_dict, from_tensor_file, json_object
from fedlora.adapters.tensor_file import TensorFile, is_moment
from fedlora.adapters.tensor_writer import MAX_HEADER_BYTES, tensor_bytes
from fedlora.common.errors import AdapterError
from fedlora.common.open_files import require_descriptors
from fedlora.common.parsing import json_in

METADATA_KEY = "adapter_config"


def pack(adapter: Adapter, *, without: str = "", moments: Mapping[str, Tensor] | None = None) -> bytes:
    """Return the adapter as safetensors bytes with its configuration in the header.

    Args:
        without: "A" or "B": the factor that is left out of every pair, because the receiver has it.
        moments: of the optimiser, which go beside the adapter.

    Raises:
        ValueError: the configuration gives a layer another scaling than it has.
    """
    check_scaling(adapter)
    tensors = to_state_dict(adapter, has_dense=True)
    if without:
        tensors = {key: tensor for key, tensor in tensors.items() if factor_of(key) != without}
    if moments:
        tensors |= {key: tensor.contiguous() for key, tensor in moments.items()}
    # In its own order, on which the alpha of a layer may depend.
    return tensor_bytes(tensors, packed_metadata(json.dumps(dict(adapter.config))))


def packed_metadata(config: str) -> dict[str, str]:
    """Return what the header of a packed adapter says: its configuration, and what PEFT's files say of themselves.

    So a packed adapter without a change of the base weights is also the file of tensors in PEFT's folder.
    """
    return {METADATA_KEY: config, "format": "pt"}


def tensors_in(raw: bytes) -> dict[str, Tensor]:
    """Return the tensors in safetensors bytes, by key.

    Raises:
        AdapterError: the bytes are no safetensors.
    """
    try:
        return read_tensors(raw)
    # The library lets shapes such as (2^63, 0) pass, which torch refuses in more than one way.
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise AdapterError(f"{len(raw):,} bytes that are not a safetensors file ({error})") from error


def unpack(
    raw: bytes,
    *,
    without: str = "",
    frozen: Adapter | None = None,
    config: Mapping[str, object] | None = None,
    beside_moments: bool = False,
) -> Adapter:
    """Return the adapter in the bytes that `pack` wrote.

    Args:
        beside_moments: whether there may be moments beside it, which are passed over; else they are refused.
        config: its configuration, in place of the one in the bytes.
        without: "A" or "B": the factor that was left out; it is taken from `frozen`.
        frozen: an adapter with the same layers.

    Raises:
        AdapterError: the bytes are not safetensors, are cut short, hold the factor that was to be left out, or their
            tensors do not fit together.
    """
    config = packed_config(raw) if config is None else config
    tensors = tensors_in(raw)
    if beside_moments:
        tensors = {key: tensor for key, tensor in tensors.items() if not is_moment(key)}
    _refuse_untrained(tensors, without, origin="packed adapter")
    return from_state_dict(tensors, config, origin="packed adapter", frozen=frozen if without else None)


def open_packed(
    path: Path, *, without: str = "", frozen: Adapter | None = None, beside_moments: bool = False
) -> Adapter:
    """Return the adapter in a file that `pack` wrote, without its tensors: each is read whenever it is asked for.

    The file must stay as it is for as long as the adapter is used. A change of the base weights is read at once.

    Args:
        without: "A" or "B": the factor that was left out; it is taken from `frozen` whenever it is asked for.
        frozen: an adapter with the same layers.
        beside_moments: whether there may be moments beside it, which are passed over; else they are refused.

    Raises:
        AdapterError: as `unpack`, or the file cannot be read.
    """
    only = _is_of_adapter if beside_moments else None
    config, tensors = packed_config(path), open_tensors(path, only=only)
    _refuse_untrained(tensors.shapes, without, origin=str(path))
    return from_tensor_file(tensors, config, frozen=frozen if without else None)


def packed_config(packed: bytes | Path) -> dict[str, object]:
    """Return the configuration in the bytes, or the file, that `pack` wrote; nothing but their header is read.

    Raises:
        AdapterError: there is no such header.
    """
    text = metadata_of(packed)[METADATA_KEY]
    try:
        config = json_in(text)
    except ValueError as error:
        raise _headless(packed, error) from error
    return json_object(config, origin=str(packed) if isinstance(packed, Path) else "packed adapter")


def packed_names(packed: bytes | Path) -> list[str]:
    """Return the names of the tensors in the bytes, or the file, that `pack` wrote; nothing but their header is read.

    Raises:
        AdapterError: there is no such header.
    """
    metadata_of(packed)
    return sorted(json_in(_header(packed)).keys() - {"__metadata__"})


def metadata_of(packed: bytes | Path) -> dict[str, str]:
    """Return what the header of a packed adapter says beside its tensors: the configuration's text, maybe more.

    Raises:
        AdapterError: there is no such header.
    """
    try:
        header = json_in(_header(packed))
        metadata: dict[str, str] = header["__metadata__"]
        if not all(isinstance(text, str) for text in (metadata[METADATA_KEY], *metadata.values())):
            raise ValueError("it has metadata that is no text")
    except OSError as error:
        require_descriptors(error, kind=AdapterError)
        raise AdapterError(f"{packed!s}: cannot be read ({error.strerror or error})") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _headless(packed, error) from error
    return metadata


def open_tensors(path: Path, *, only: Callable[[str], bool] | None = None) -> TensorFile:
    """Return the tensors of a file of which nothing is known; all of them can be read if memory suffices.

    Args:
        only: says of a key whether its tensor is wanted; all are if None.

    Raises:
        AdapterError: it is not a safetensors file, or has shapes or types that torch does not have.
    """
    tensors = TensorFile(path, only=only)
    for key, shape in tensors.shapes.items():
        try:
            tensors.empty(key)
        except (TypeError, RuntimeError) as error:  # The library lets shapes such as (2^63, 0) pass.
            raise AdapterError(f"{path}: {key} has the shape {shape}, which torch cannot hold") from error
    return tensors


def _is_of_adapter(key: str) -> bool:
    return not is_moment(key)


def _header(packed: bytes | Path) -> bytes:
    with io.BytesIO(packed) if isinstance(packed, bytes) else open(packed, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"it would take {size:,} bytes")
        return file.read(size)


def _headless(packed: bytes | Path, error: Exception) -> AdapterError:
    what = f"{packed}: a file" if isinstance(packed, Path) else f"{len(packed):,} bytes"
    return AdapterError(f"{what} without the header of a packed adapter ({type(error).__name__}: {error})")


def _refuse_untrained(keys: Iterable[str], without: str, *, origin: str) -> None:
    if without and (untrained := sorted(key for key in keys if factor_of(key) == without)):
        raise AdapterError(f"{origin}: {untrained[0]}, of a factor that was not to be trained or sent")
