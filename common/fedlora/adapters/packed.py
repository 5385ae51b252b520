"""The adapter's form on the wire: safetensors bytes with the configuration in their header.

One array of bytes is a whole adapter.
"""

import json

from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

from fedlora.adapters.adapter import Adapter
from fedlora.adapters.keys import factor_of, to_state_dict
from fedlora.adapters.peft_format import check_scaling, from_state_dict, json_object
from fedlora.common.errors import AdapterError

_METADATA_KEY = "adapter_config"
_MAX_HEADER_BYTES = 10_000_000


def pack(adapter: Adapter, *, without: str = "") -> bytes:
    """Return the adapter as safetensors bytes with its configuration in the header.

    Args:
        without: "A" or "B": the factor that is left out of every pair, because the receiver has it.

    Raises:
        ValueError: the configuration gives a layer another scaling than it has.
    """
    check_scaling(adapter)
    tensors = to_state_dict(adapter)
    if without:
        tensors = {key: tensor for key, tensor in tensors.items() if factor_of(key) != without}
    text = json.dumps(dict(adapter.config))  # In its own order, on which the alpha of a layer may depend.
    # One entry and no more: safetensors writes several in an order that differs from call to call.
    return write_tensors(tensors, metadata={_METADATA_KEY: text})


def unpack(raw: bytes, *, without: str = "", frozen: Adapter | None = None) -> Adapter:
    """Return the adapter in the bytes that `pack` wrote.

    Args:
        without: "A" or "B": the factor that was left out; it is taken from `frozen`.
        frozen: an adapter with the same layers.

    Raises:
        AdapterError: the bytes are not safetensors, are cut short, hold the factor that was to be left out, or their
            tensors do not fit together.
    """
    config = packed_config(raw)
    try:
        tensors = read_tensors(raw)
    except (SafetensorError, KeyError) as error:
        raise AdapterError(f"{len(raw):,} bytes that are not a safetensors file ({error})") from error
    if without and (untrained := sorted(key for key in tensors if factor_of(key) == without)):
        raise AdapterError(f"packed adapter: {untrained[0]}, of a factor that was not to be trained or sent")
    return from_state_dict(tensors, config, origin="packed adapter", frozen=frozen if without else None)


def packed_config(raw: bytes) -> dict[str, object]:
    """Return the configuration in the bytes that `pack` wrote; nothing but their header is read.

    Raises:
        AdapterError: there is no such header.
    """
    header_size = int.from_bytes(raw[:8], "little")
    try:
        if header_size > _MAX_HEADER_BYTES:
            raise ValueError(f"it would take {header_size:,} bytes")
        header = json.loads(raw[8 : 8 + header_size])
        config = json.loads(header["__metadata__"][_METADATA_KEY])
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise AdapterError(
            f"{len(raw):,} bytes without the header of a packed adapter ({type(error).__name__}: {error})"
        ) from error
    return json_object(config, origin="packed adapter")
