"""The clients' PEFT folders: what they are called, and whether their adapters can be averaged at all."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.peft_format import CONFIG_FILE, TENSOR_FILE
from fedlora.adapters.tensor_file import TensorFile
from fedlora.common.errors import AdapterError, ConfigError

# What must agree: by key of adapter_config.json, what all adapters have in common then.
_COMMON = {
    "base_model_name_or_path": "all must adapt one base model, written the same in every file",
    "revision": "all must adapt one base model",
    "task_type": "all must do one task",
    "target_modules": "all must adapt the same modules",
    "exclude_modules": "all must adapt the same modules",
    "layers_to_transform": "all must adapt the same layers",
    "layers_pattern": "all must adapt the same layers",
    "modules_to_save": "all must train the same modules beside the adapter",
    "trainable_token_indices": "all must train the same tokens",
    "bias": "all must train the same biases",
    "lora_bias": "all must train the same biases",
    "use_dora": "all must be DoRA or none",
    "fan_in_fan_out": "all must adapt one base model",
}


def name_clients(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by the names of their clients: the last part of each path, or all of it if two end alike.

    Raises:
        ConfigError: a folder is given twice.
    """
    times = Counter(map(os.path.realpath, folders))
    for folder in folders:
        if times[os.path.realpath(folder)] > 1:
            raise ConfigError(f"{folder}: given twice; give each folder once, and with --weights its share")
    names = [Path(os.path.abspath(folder)).name for folder in folders]
    if max(Counter(names).values()) > 1 or not all(names):
        names = [str(folder) for folder in folders]
    return dict(zip(names, folders, strict=True))


def check_alike(folders: Mapping[str, Path], adapters: Mapping[str, Adapter]) -> None:
    """Check that the adapters are of one base model and train the same tensors, up to the rank. No tensor is read.

    Raises:
        AdapterError: they are not; the message names the file, the setting or tensor, and what the first one has.
    """
    first, *others = folders
    if not adapters[first].layers:
        raise AdapterError(f"{folders[first] / TENSOR_FILE}: no LoRA layer; expected tensors named lora_A and lora_B")
    for client in others:
        for key, reason in _COMMON.items():
            difference = _difference(adapters[client].config.get(key), adapters[first].config.get(key))
            if difference:
                file, other = folders[client] / CONFIG_FILE, folders[first] / CONFIG_FILE
                raise AdapterError(f"{file}: {key} {difference} as in {other}: {reason}")
        files = folders[first] / TENSOR_FILE, folders[client] / TENSOR_FILE
        _check_tensors(_shapes(adapters[first]), _shapes(adapters[client]), files=files)


def tensor_that_is_not_finite(folders: Mapping[str, Path]) -> str | None:
    """Return which file has which tensor with values that are not finite, and how many; None if there is none.

    Raises:
        AdapterError: a file cannot be read.
    """
    for folder in folders.values():
        file = TensorFile(folder / TENSOR_FILE)
        for key in file.shapes:
            tensor = file.read(key)
            is_finite = tensor.isfinite()
            if not is_finite.all():
                first = tensor[~is_finite][0].item()
                num = int((~is_finite).sum())
                return (
                    f"{file.path}: {key} has {num:,} of {tensor.numel():,} values that are not finite ({first}, for "
                    "one); expected numbers only: leave this folder out, or train it again"
                )
    return None


def _check_tensors(
    expected: Mapping[str, tuple[object, ...]], found: Mapping[str, tuple[object, ...]], *, files: tuple[Path, Path]
) -> None:
    """Check that two files have the same tensors, the one of `expected` first."""
    for lacking, having, (file, other) in ((found, expected, files[::-1]), (expected, found, files)):
        if missing := [name for name in having if name not in lacking]:
            more = f" and of {len(missing) - 1} more" if len(missing) > 1 else ""
            raise AdapterError(
                f"{file}: no {missing[0]}{more}; expected {_text(having[missing[0]])} as in {other}: "
                "all must have the same tensors"
            )
    for name, shape in expected.items():
        if found[name] != shape:
            raise AdapterError(
                f"{files[1]}: {name} is {_text(found[name])}; expected {_text(shape)} as in {files[0]}: "
                "all must adapt one base model"
            )


def _shapes(adapter: Adapter) -> dict[str, tuple[object, ...]]:
    """Return the shapes by the tensors' names, with a word where the rank is."""
    shapes = {name: shape for path, layer in adapter.outline.items() for name, shape in _layer_shapes(path, layer)}
    return shapes | {path: tuple(tensor.shape) for path, tensor in adapter.dense_outline.items()}


def _layer_shapes(path: str, layer: LoraLayer) -> Iterator[tuple[str, tuple[object, ...]]]:
    prefix = "lora_embedding_" if layer.is_embedding else "lora_"
    yield f"{path}.{prefix}A", ("rank", layer.A.shape[1])
    yield f"{path}.{prefix}B", (layer.B.shape[0], "rank")
    for name, vector in (("lora_B.bias", layer.bias), ("lora_magnitude_vector", layer.magnitude)):
        if vector is not None:
            yield f"{path}.{name}", tuple(vector.shape)


def _text(shape: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _difference(found: object, expected: object) -> str:
    """Return in words how a setting differs; empty if it does not."""
    if isinstance(found, list) and isinstance(expected, list):
        extra, missing = ([item for item in one if item not in other] for one, other in _both_ways(found, expected))
        parts = [f"has {_items(extra)}"] * bool(extra) + [f"lacks {_items(missing)}"] * bool(missing)
        return f"{' and '.join(parts)}; expected {_items(expected)}" if parts else ""
    found, expected = (None if _is_unset(value) else value for value in (found, expected))
    return "" if found == expected else f"is {found!r}; expected {expected!r}"


def _is_unset(value: object) -> bool:
    # An old PEFT leaves out what a new one writes as null, false or "none"; 0 is a layer's number.
    return value is None or value is False or value in ("", "none", [], {})


def _both_ways(one: list[object], other: list[object]) -> Iterator[tuple[list[object], list[object]]]:
    yield one, other
    yield other, one


def _items(items: list[object]) -> str:
    return ", ".join(map(repr, items))
