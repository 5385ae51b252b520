"""PEFT's format: tensor names, adapter_config.json, and adapter_model.safetensors, read and written without peft.

The same bytes are the adapter's form on the wire: `pack` puts the configuration into the
safetensors header, so that one array of bytes is a whole adapter.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from fedlora.adapters.adapter import Adapter, LoraLayer
from fedlora.common.errors import AdapterError
from fedlora.common.files import write_file

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_METADATA_KEY = "adapter_config"
_MAX_HEADER_BYTES = 10_000_000

# The part of a configuration that `scaling_of` reads.
SCALING_KEYS = ("lora_alpha", "alpha_pattern", "use_rslora")


class HasToDict(Protocol):
    """A LoraConfig of peft, or anything else with `to_dict`."""

    def to_dict(self) -> dict[str, object]: ...


def load_adapter(
    source: str | Path | Mapping[str, Tensor], config: HasToDict | Mapping[str, object] | None = None
) -> Adapter:
    """Return the adapter in a PEFT folder, or in a state dict with its LoraConfig.

    Args:
        source: a folder as `PeftModel.save_pretrained` writes it, or tensors by PEFT's key names,
            with or without the adapter name (`.default`) in them.
        config: the LoraConfig; for a state dict only, and needed there.

    Raises:
        AdapterError: a file is missing or unreadable, or a tensor has no partner or a shape that does not fit.
    """
    if isinstance(source, str | Path):
        return _load_folder(Path(source))
    if config is None:
        raise ValueError("a state dict needs its LoraConfig: load_adapter(state_dict, lora_config)")
    content = config if isinstance(config, Mapping) else config.to_dict()
    return from_state_dict(source, plain_config(content), origin="state dict")


def save_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Write `adapter` as a PEFT folder: the configuration first, then the tensors, each file whole or absent.

    Raises:
        StoreError: the folder cannot be written.
        ValueError: the configuration is not that of a LoRA adapter, or gives a layer another scaling than it has.
    """
    folder = Path(folder)
    if adapter.config.get("peft_type") != "LORA":
        raise ValueError("the adapter's config has no peft_type 'LORA'; give it the content of a LoraConfig")
    _check_scaling(adapter)
    write_file(folder / CONFIG_FILE, json.dumps(dict(adapter.config), indent=2) + "\n")
    write_file(folder / TENSOR_FILE, write_tensors(to_state_dict(adapter), metadata={"format": "pt"}))


def pack(adapter: Adapter) -> bytes:
    """Return the adapter as safetensors bytes with its configuration in the header.

    Raises:
        ValueError: the configuration gives a layer another scaling than it has.
    """
    _check_scaling(adapter)
    text = json.dumps(dict(adapter.config))  # In its own order, on which the alpha of a layer may depend.
    # One entry and no more: safetensors writes several in an order that differs from call to call.
    return write_tensors(to_state_dict(adapter), metadata={_METADATA_KEY: text})


def unpack(raw: bytes) -> Adapter:
    """Return the adapter in the bytes that `pack` wrote.

    Raises:
        AdapterError: the bytes are not safetensors, are cut short, or their tensors do not fit together.
    """
    config = packed_config(raw)
    try:
        tensors = read_tensors(raw)
    except (SafetensorError, KeyError) as error:
        raise AdapterError(f"{len(raw):,} bytes that are not a safetensors file ({error})") from error
    return from_state_dict(tensors, config, origin="packed adapter")


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
    return _object(config, origin="packed adapter")


def to_state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Return the adapter's tensors under the key names of `PeftModel.save_pretrained`, contiguous."""
    named: dict[str, Tensor] = {}
    for path, layer in adapter.layers.items():
        named[f"{_PREFIX}{path}.lora_A.weight"] = layer.A.contiguous()
        named[f"{_PREFIX}{path}.lora_B.weight"] = layer.B.contiguous()
    for path, tensor in adapter.dense.items():
        named[f"{_PREFIX}{path}"] = tensor.contiguous()
    return named


def from_state_dict(tensors: Mapping[str, Tensor], config: Mapping[str, object], *, origin: str) -> Adapter:
    """Return the adapter whose tensors have PEFT's key names; `origin` names the source in errors."""
    halves: dict[str, dict[str, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for key in sorted(tensors):
        path = key.removeprefix(_PREFIX).replace(".modules_to_save.default.", ".")
        head, marker, tail = path.rpartition(".lora_")
        if not marker:
            dense[path] = tensors[key]
            continue
        side = tail.removesuffix(".weight").removesuffix(".default")
        if side not in ("A", "B"):
            raise AdapterError(
                f"{origin}: tensor {key} is not part of a linear LoRA pair; expected lora_A.weight or lora_B.weight"
            )
        halves.setdefault(head, {})[side] = tensors[key]
    layers = {path: _pair(path, found, config, origin) for path, found in halves.items()}
    return Adapter(layers, dense, dict(config))


def _pair(path: str, found: Mapping[str, Tensor], config: Mapping[str, object], origin: str) -> LoraLayer:
    missing = {"A", "B"} - set(found)
    if missing:
        raise AdapterError(f"{origin}: {path} has no lora_{missing.pop()}; a LoRA layer needs both A and B")
    A, B = found["A"], found["B"]
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or A.shape[0] == 0:
        raise AdapterError(
            f"{origin}: {path} has A {tuple(A.shape)}, B {tuple(B.shape)}; "
            "expected A (rank, in_features), B (out_features, rank)"
        )
    try:
        scaling = scaling_of(path, A.shape[0], config)
    except (TypeError, AttributeError, re.error) as error:
        settings = {key: config.get(key) for key in SCALING_KEYS}
        raise AdapterError(f"{origin}: {path} has no scaling from {settings} ({error})") from error
    return LoraLayer(A, B, scaling)


def scaling_of(path: str, rank: int, config: Mapping[str, object]) -> float:
    """Return the factor on B @ A of one layer: alpha / rank, or alpha / sqrt(rank) under rsLoRA.

    As in PEFT, a key of `alpha_pattern` is a regular expression for the end of the layer's path, and the first that
    matches counts.
    """
    alpha = cast(float, config.get("lora_alpha", rank))
    for pattern, special in cast(dict[str, float], config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = special
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_scaling(adapter: Adapter) -> None:
    for path, layer in adapter.layers.items():
        expected = scaling_of(path, layer.rank, adapter.config)
        if not math.isclose(layer.scaling, expected):
            raise ValueError(
                f"{path} scales by {layer.scaling:g}, by the adapter's config it would by {expected:g}; "
                "change lora_alpha, alpha_pattern or use_rslora there"
            )


def _load_folder(folder: Path) -> Adapter:
    config_path, tensor_path = folder / CONFIG_FILE, folder / TENSOR_FILE
    for path in (config_path, tensor_path):
        if not path.is_file():
            raise AdapterError(f"{path}: no such file; a PEFT folder holds {CONFIG_FILE} and {TENSOR_FILE}")
    try:
        config = _object(json.loads(config_path.read_text(encoding="utf-8")), origin=str(config_path))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{config_path}: not JSON ({error})") from error
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{config_path}: peft_type is {config.get('peft_type')!r}; expected 'LORA'")
    try:
        with safe_open(tensor_path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise AdapterError(f"{tensor_path}: not a safetensors file ({error})") from error
    return from_state_dict(tensors, config, origin=str(tensor_path))


def _object(content: object, *, origin: str) -> dict[str, object]:
    if not isinstance(content, dict):
        raise AdapterError(f"{origin}: the configuration is {type(content).__name__}; expected a JSON object")
    return content


def plain_config(config: Mapping[str, object]) -> dict[str, object]:
    """Return PEFT's configuration with JSON's types: enums as their value, sets as sorted lists."""
    return {key: _plain_value(value) for key, value in config.items() if not isinstance(value, torch.dtype)}


def _plain_value(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(cast(set[str], value))
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    return getattr(value, "value", value)
