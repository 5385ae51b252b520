"""PEFT's folders: adapter_config.json and adapter_model.safetensors, read and written without peft."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save as write_tensors
from torch import Tensor

from fedlora.adapters.adapter import Adapter, LoraLayer
from fedlora.adapters.concatenation import with_base_change_inside
from fedlora.adapters.dense_change import dense_pair
from fedlora.adapters.keys import PREFIX, Layout, layer_from, layout_of, named_tensors, to_state_dict
from fedlora.adapters.meaning import refuse_another_product, refuse_unknown, with_pefts_alpha
from fedlora.adapters.on_demand import OnDemand
from fedlora.adapters.settings import SCALING_KEYS, plain_config, scaling_of
from fedlora.adapters.tensor_file import TensorFile
from fedlora.common.errors import AdapterError
from fedlora.common.files import link_file, sync_folder, write_file
from fedlora.common.open_files import require_descriptors
from fedlora.common.parsing import json_in

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"

_TRAINED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# A module that is trained whole may count something, as a batch norm does.
_COUNTED = (torch.int64, torch.int32, torch.int16, torch.bool)


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
        AdapterError: a file is missing or unreadable, a tensor has no partner or a shape that does not fit, or it is
            no adapter whose pairs act as scaling * B @ A.
    """
    if isinstance(source, str | Path):
        stored = open_adapter(source)
        return Adapter(dict(stored.layers), dict(stored.dense), stored.config, stored.base_change)
    if config is None:
        raise ValueError("a state dict needs its LoraConfig: load_adapter(state_dict, lora_config)")
    content = with_pefts_alpha(plain_config(config if isinstance(config, Mapping) else config.to_dict()))
    adapter = _trained(from_state_dict(source, content, origin="state dict"), origin="state dict")
    refuse_unknown(content, origin="state dict")
    return adapter


def open_adapter(folder: str | Path) -> Adapter:
    """Return the adapter in a PEFT folder without its tensors: each is read from disk whenever it is asked for.

    A thousand of these take little memory, and adapters larger than memory can be aggregated layer by layer. The
    folder must stay as it is for as long as the adapter is used.

    Raises:
        AdapterError: as `load_adapter`.
    """
    folder = Path(folder)
    tensors, config = _open_tensors(folder), _read_config(folder / CONFIG_FILE)
    return _trained(from_tensor_file(tensors, config), origin=str(tensors.path))


def save_adapter(adapter: Adapter, folder: str | Path, *, packed: Path | None = None) -> None:
    """Write `adapter` as a PEFT folder: the configuration first, then the tensors, each file whole or absent.

    PEFT knows no change of the base weights; it is written as further rank of the pairs, which act exactly the same.

    Args:
        packed: a file that holds the adapter as `pack` writes it; where PEFT's file is the same, it is linked.

    Raises:
        StoreError: the folder cannot be written.
        ValueError: the configuration is not that of a LoRA adapter, or gives a layer another scaling than it has.
    """
    folder = Path(folder)
    if adapter.config.get("peft_type") != "LORA":
        raise ValueError("the adapter's config has no peft_type 'LORA'; give it the content of a LoraConfig")
    shared = None if adapter.base_change else packed
    adapter = with_base_change_inside(adapter)
    check_scaling(adapter)
    write_file(folder / CONFIG_FILE, json.dumps(dict(adapter.config), indent=2) + "\n")
    if shared is not None:
        link_file(shared, folder / TENSOR_FILE)
        sync_folder(folder)
    else:
        write_file(folder / TENSOR_FILE, write_tensors(to_state_dict(adapter), metadata={"format": "pt"}))


def from_state_dict(
    tensors: Mapping[str, Tensor], config: Mapping[str, object], *, origin: str, frozen: Adapter | None = None
) -> Adapter:
    """Return the adapter whose tensors have PEFT's key names; `origin` names the source in errors.

    Args:
        frozen: has the A or the B of a layer for which `tensors` has only the other.
    """
    refuse_another_product(config, origin=origin)
    layout = layout_of(tensors, origin=origin)
    tensors = dict(tensors)
    if frozen is not None:
        tensors |= {key: _half(frozen.layers, half) for key, half in _complete(layout, frozen).items()}
    layer = _layer_reader(layout, tensors.__getitem__, config, origin=origin)
    return Adapter(
        {path: layer(path) for path in layout.layers},
        {path: tensors[key] for path, key in layout.dense.items()},
        dict(config),
        _base_change(layout, tensors.__getitem__, origin=origin),
    )


def from_tensor_file(tensors: TensorFile, config: Mapping[str, object], *, frozen: Adapter | None = None) -> Adapter:
    """Return the adapter whose tensors lie in a file under PEFT's key names; each is read whenever it is asked for.

    A change of the base weights is read at once.

    Args:
        frozen: has the A or the B of a layer for which the file has only the other.

    Raises:
        AdapterError: a tensor has no partner or a shape that does not fit, or the configuration makes no sense.
    """
    origin = str(tensors.path)
    refuse_another_product(config, origin=origin)
    layout = layout_of(tensors.shapes, origin=origin)
    halves = {} if frozen is None else _complete(layout, frozen)

    def read(key: str) -> Tensor:
        return tensors.read(key) if frozen is None or key not in halves else _half(frozen.layers, halves[key])

    def empty(key: str) -> Tensor:
        return tensors.empty(key) if frozen is None or key not in halves else _half(frozen.outline, halves[key])

    # The shapes come from the file's header: what does not fit is found here, before a tensor is read.
    described = _layer_reader(layout, empty, config, origin=origin)
    scalings = {path: described(path).scaling for path in layout.layers}

    def layer(read: Callable[[str], Tensor], path: str) -> LoraLayer:
        return layer_from(path, layout.layers[path], read, lambda _rank: scalings[path], origin=origin)

    def dense(read: Callable[[str], Tensor], path: str) -> Tensor:
        return read(layout.dense[path])

    return Adapter(
        OnDemand(layout.layers, partial(layer, read), OnDemand(layout.layers, partial(layer, empty))),
        OnDemand(layout.dense, partial(dense, read), OnDemand(layout.dense, partial(dense, empty))),
        dict(config),
        _base_change(layout, read, origin=origin),
    )


def check_scaling(adapter: Adapter) -> None:
    """Check that the adapter's configuration gives every layer the scaling it has.

    Raises:
        ValueError: it does not.
    """
    for path, layer in adapter.layers.items():
        expected = scaling_of(path, layer.rank, adapter.config)
        if abs(layer.scaling - expected) > 1e-9 * abs(expected):
            raise ValueError(
                f"{path} scales by {layer.scaling:g}, by the adapter's config it would by {expected:g}; "
                "change lora_alpha, alpha_pattern or use_rslora there"
            )


def json_object(content: object, *, origin: str) -> dict[str, object]:
    """Return `content` if it is a JSON object.

    Raises:
        AdapterError: it is something else.
    """
    if not isinstance(content, dict):
        raise AdapterError(f"{origin}: the configuration is {type(content).__name__}; expected a JSON object")
    return content


def _layer_reader(
    layout: Layout,
    read: Callable[[str], Tensor],
    config: Mapping[str, object],
    *,
    origin: str,
) -> Callable[[str], LoraLayer]:
    def scaling(path: str, rank: int) -> float:
        settings = {key: config.get(key) for key in SCALING_KEYS}
        try:
            found = scaling_of(path, rank, config)
        except (AdapterError, TypeError, AttributeError, OverflowError) as error:
            raise AdapterError(f"{origin}: {path} has no scaling from {settings} ({error})") from error
        if not math.isfinite(found) or found == 0:
            raise AdapterError(f"{origin}: {path} scales by {found} from {settings}; expected a finite number, not 0")
        return found

    def layer(path: str) -> LoraLayer:
        return layer_from(path, layout.layers[path], read, lambda rank: scaling(path, rank), origin=origin)

    return layer


def _base_change(layout: Layout, read: Callable[[str], Tensor], *, origin: str) -> dict[str, LoraLayer]:
    changes: dict[str, LoraLayer] = {}
    for path, parts in layout.base_change.items():
        dense = [part for part in parts if part.endswith("dense")]
        if not dense:
            changes[path] = layer_from(path, parts, read, lambda _rank: 1.0, origin=origin)
            continue
        matrix = read(parts[dense[0]])
        if len(parts) > 1 or matrix.dim() != 2 or not matrix.numel():
            raise AdapterError(
                f"{origin}: the change of {path}'s weight is {', '.join(sorted(parts))}, the first of them "
                f"{tuple(matrix.shape)}; expected A and B, or one matrix (out_features, in_features)"
            )
        changes[path] = dense_pair(matrix, is_embedding=dense[0].startswith("embedding"))
    return changes


def _complete(layout: Layout, frozen: Adapter) -> dict[str, tuple[str, str]]:
    """Add to `layout` the half of a pair that is missing there and that `frozen` has.

    Returns:
        By the key that it was given: the layer's path, and "A" or "B".
    """
    halves: dict[str, tuple[str, str]] = {}
    for path, parts in layout.layers.items():
        if path in frozen.layers:
            prefix = "embedding_" if frozen.outline[path].is_embedding else ""
            for side in ("A", "B"):
                if f"{prefix}{side}" not in parts:
                    parts[f"{prefix}{side}"] = key = f"frozen {side} of {path}"
                    halves[key] = (path, side)
    return halves


def _half(layers: Mapping[str, LoraLayer], half: tuple[str, str]) -> Tensor:
    path, side = half
    return layers[path].A if side == "A" else layers[path].B


def _read_config(path: Path) -> dict[str, object]:
    _require_file(path)
    try:
        config = json_object(json_in(path.read_text(encoding="utf-8")), origin=str(path))
    except OSError as error:
        require_descriptors(error, kind=AdapterError)
        raise AdapterError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise AdapterError(f"{path}: not JSON ({error})") from error
    config.setdefault("peft_type", None)  # Of a file without it nobody knows what it is.
    refuse_another_product(config, origin=str(path))
    refuse_unknown(config, origin=str(path))
    return with_pefts_alpha(config)


def _open_tensors(folder: Path) -> TensorFile:
    path = folder / TENSOR_FILE
    if not path.is_file() and (folder / _PICKLED_FILE).is_file():
        raise AdapterError(
            f"{folder / _PICKLED_FILE}: a pickle, which can run code when it is read; expected {TENSOR_FILE}: "
            "save the adapter again with save_pretrained(..., safe_serialization=True)"
        )
    _require_file(path)
    return TensorFile(path)


def _trained(adapter: Adapter, *, origin: str) -> Adapter:
    """Return the adapter if it has pairs, and all of its numbers are of types that are trained.

    Raises:
        AdapterError: it has none, or numbers of another type: of 8 bits, as quantised weights are stored, as a rule.
    """
    if not adapter.layers:
        others = sorted(adapter.dense)
        found = f"; found are {len(others)} others, the first {others[0]}" if others else ""
        raise AdapterError(f"{origin}: no LoRA layer; expected tensors named lora_A and lora_B{found}")
    outline = replace(adapter, layers=adapter.outline, dense=adapter.dense_outline)
    for key, tensor in named_tensors(outline):
        is_whole = key.removeprefix(PREFIX) in adapter.dense
        if tensor.dtype not in _TRAINED and not (is_whole and tensor.dtype in _COUNTED):
            found = str(tensor.dtype).removeprefix("torch.")
            raise AdapterError(
                f"{origin}: {key} is {found}; expected float32, float16, bfloat16 or "
                "float64: a quantised weight is no part of an adapter, and what is trained is saved in one of these"
            )
    return adapter


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    folder = path.parent
    if folder.is_file():
        raise AdapterError(f"{folder}: is a file; expected the PEFT folder that it lies in")
    if inside := _adapters_inside(folder):
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise AdapterError(
            f"{path}: no such file; give the folder that holds the adapter: {', '.join(map(str, inside[:3]))}{more}"
        )
    raise AdapterError(f"{path}: no such file; a PEFT folder holds {CONFIG_FILE} and {TENSOR_FILE}")


def _adapters_inside(folder: Path) -> list[Path]:
    """Return the folders below one that hold an adapter: a run's adapter/, a trainer's checkpoint-500/, PEFT's name."""
    if (folder / CONFIG_FILE).is_file() or (folder / TENSOR_FILE).is_file():
        return []
    try:
        return sorted(file.parent for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{CONFIG_FILE}"))
    except OSError:
        return []
