"""Several clients' PEFT folders: whether their adapters can be averaged at all, and their result be saved as one."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.meaning import difference_in_meaning, is_unset, starts_from_the_base
from fedlora.adapters.peft_format import CONFIG_FILE, TENSOR_FILE
from fedlora.adapters.settings import SHAPE_KEYS
from fedlora.adapters.targets import layer_not_chosen
from fedlora.adapters.tensor_file import TensorFile
from fedlora.common.errors import AdapterError

# What must agree beside what the pairs mean: by key of adapter_config.json, what all adapters have in common then.
_COMMON = {
    "base_model_name_or_path": "all must adapt one base model, written the same in every file",
    "revision": "all must adapt one base model",
    "task_type": "all must do one task",
    "trainable_token_indices": "all must train the same tokens",
    "bias": "all must train the same biases",
    "lora_bias": "all must train the same biases",
    "fan_in_fan_out": "all must adapt one base model",
}
_BASE_MODEL = ("base_model_name_or_path", "revision")


def check_alike(
    folders: Mapping[str, Path], adapters: Mapping[str, Adapter], *, base_model: str | None = None, remedy: str = ""
) -> None:
    """Check that the adapters are of one base model, mean the same and train the same tensors, up to the rank.

    Which layers a configuration chooses, by a list or an expression, is not compared: the tensors show it. But each
    must choose the layers that its own tensors are of. No tensor is read.

    Args:
        base_model: the name of the model that all of them adapt, whatever they call it.
        remedy: what to do where they do adapt one base model, and call it by several names.

    Raises:
        AdapterError: they are not; the message names the file, the setting or tensor, and what the first one has.
    """
    first, *others = folders
    for client in folders:
        file, paths = folders[client] / CONFIG_FILE, sorted(adapters[client].outline)
        if reason := layer_not_chosen(adapters[client].config, paths, origin=str(file)):
            raise AdapterError(
                f"{file}: {reason}, and {folders[client] / TENSOR_FILE} has tensors of it: PEFT would not load them"
            )
    for client in others:
        file, other = folders[client] / CONFIG_FILE, folders[first] / CONFIG_FILE
        for key, reason in _COMMON.items():
            if base_model is not None and key in _BASE_MODEL:
                continue
            difference = _difference(key, adapters[client].config.get(key), adapters[first].config.get(key))
            if difference:
                cure = f"; {remedy}" if remedy and key in _BASE_MODEL else ""
                raise AdapterError(f"{file}: {key} {difference} as in {other}: {reason}{cure}")
        if found := difference_in_meaning(adapters[client].config, adapters[first].config):
            raise AdapterError(f"{file}: {found.what} as in {other}: {found.reason}")
        files = folders[first] / TENSOR_FILE, folders[client] / TENSOR_FILE
        _check_tensors(_shapes(adapters[first]), _shapes(adapters[client]), files=files)


def with_one_origin(result: Adapter, adapters: Mapping[str, Adapter], *, base_model: str | None) -> Adapter:
    """Return the result with what the adapters say of their base model and task, each in its own spelling.

    Args:
        base_model: the name that takes the place of theirs; a revision goes with it only if all name the same one.
    """
    said = {
        key: [value for adapter in adapters.values() if not is_unset(value := adapter.config.get(key))]
        for key in (*_BASE_MODEL, "task_type")
    }
    config = dict(result.config)
    if said["task_type"]:
        config["task_type"] = said["task_type"][0]
    if base_model is not None:
        is_one_revision = len(said["revision"]) == len(adapters) and len(set(map(str, said["revision"]))) == 1
        config |= {"base_model_name_or_path": base_model, "revision": said["revision"][0] if is_one_revision else None}
    return replace(result, config=config)


def check_savable(result: Adapter, folders: Mapping[str, Path], adapters: Mapping[str, Adapter]) -> None:
    """Raise AdapterError if the result has values that are not finite, or ranks that PEFT would misunderstand."""
    for path, layer in result.layers.items():
        if not (layer.A.isfinite().all() and layer.B.isfinite().all()):
            raise AdapterError(f"{path}: values so large that their products overflow {layer.B.dtype}; nothing written")
    for client, folder in folders.items():
        config = adapters[client].config
        if start := starts_from_the_base(config):
            for key in SHAPE_KEYS:
                if (config.get(key) or None) != (result.config.get(key) or None):
                    raise AdapterError(
                        f"{folder / CONFIG_FILE}: init_lora_weights is {start!r} with {key} {config.get(key)}, the "
                        f"result has {result.config.get(key)}: PEFT would load it onto other base weights; save the "
                        "adapters with path_initial_model_for_weight_conversion first"
                    )


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


def _difference(key: str, found: object, expected: object) -> str:
    """Return in words how a setting differs; empty if it does not, or only in its spelling."""
    found, expected = (_without_spelling(key, value) for value in (found, expected))
    if key == "task_type" and None in (found, expected):
        return ""
    return "" if found == expected else f"is {found!r}; expected {expected!r}"


def _without_spelling(key: str, value: object) -> object:
    if is_unset(value) or (key == "revision" and value == "main"):
        return None
    if key == "base_model_name_or_path" and isinstance(value, str):
        return value.rstrip("/") or value
    # Of tokens what is compared here is whether any are trained; which ones is a matter of what the tensors mean.
    return "set" if key == "trainable_token_indices" else value
