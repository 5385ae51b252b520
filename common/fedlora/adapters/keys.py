"""PEFT's names of tensors, taken apart and put together."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedlora.adapters.adapter import Adapter, LoraLayer
from fedlora.adapters.dense_change import dense_of
from fedlora.common.errors import AdapterError

PREFIX = "base_model.model."
_MODULES_TO_SAVE = ".modules_to_save.default."

_PART_OF_A_LAYER = re.compile(
    r"(?P<path>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.(?P<leaf>weight|bias))?"
)
_BASE_CHANGE = re.compile(r"base_change\.(?P<path>.+)\.(?P<part>A|B|dense|embedding_A|embedding_B|embedding_dense)")
# What others put into keys, by what it is and what to do.
_NOT_AN_ADAPTERS = (
    (
        re.compile(r"(?:^|\.)_orig_mod\."),
        "a name that torch.compile gives; save the adapter of the model inside, compiled._orig_mod",
    ),
    (
        re.compile(r"^module\.(?=base_model\.)"),
        "a name that a parallel wrapper gives; save the adapter of the model inside, wrapper.module",
    ),
    (
        re.compile(
            r"\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+|SCB|weight_format|qweight|qzeros|g_idx)$"
        ),
        "a part of a quantised weight; an adapter holds what was trained, as get_peft_model_state_dict(model) gives it",
    ),
    (
        re.compile(
            r"(?:^|\.)(?:adamss_|beft_|boft_[Rs]|c3a_kernel|delora_|fourierft_|frod_|glora_|gralora_|hada_[wt]\d|hira_|"
            r"hra_u|ia3_l|internal_xlora|lily_|lokr_[wt]\d|miss_block|oft_[Rr]|peanut_|psoft_|pvera_|randlora_|road_theta|"
            r"road_alpha|shira_|supertuning_|tinylora_|unilora_|vblora_|vera_[AB]|vera_lambda|waveft_|prompt_embeddings)"
        ),
        "of another kind of adapter; expected LoRA's, lora_A and lora_B",
    ),
)
_FACTOR = re.compile(r"\.lora_(?:embedding_([AB])|([AB])\.weight)$")
_PARTS = {
    ("A", "weight"): "A",
    ("B", "weight"): "B",
    ("B", "bias"): "bias",
    ("embedding_A", None): "embedding_A",
    ("embedding_B", None): "embedding_B",
    ("magnitude_vector", None): "magnitude",
    ("magnitude_vector", "weight"): "magnitude",
}


@dataclass(frozen=True)
class Layout:
    """Which tensor, by its key, is what.

    Attributes:
        layers: by layer path, the key of each part: A, B (of an embedding: embedding_A, embedding_B), bias, magnitude.
        dense: the key by path in the base model.
        base_change: as `layers`, of the change of the base weights, with A and B or `dense` alone (of an embedding:
            embedding_dense); PEFT's own files have none.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    base_change: dict[str, dict[str, str]] = field(default_factory=dict)


def layout_of(keys: Iterable[str], *, origin: str) -> Layout:
    """Return what the tensors of these keys are, in the keys' sorted order; `origin` names their source in errors.

    Raises:
        AdapterError: a key has `lora_` in it and is no part of a linear or embedding layer, is of no adapter or of
            another kind, or two keys mean the same.
    """
    layout = Layout()
    for key in sorted(keys):
        for pattern, what in _NOT_AN_ADAPTERS:
            if pattern.search(key):
                raise AdapterError(f"{origin}: tensor {key} is {what}")
        if change := _BASE_CHANGE.fullmatch(key):
            layout.base_change.setdefault(change["path"], {})[change["part"]] = key
            continue
        name = key.removeprefix(PREFIX).replace(_MODULES_TO_SAVE, ".")
        found = _PART_OF_A_LAYER.fullmatch(name)
        part = found and _PARTS.get((found["part"], found["leaf"]))
        if found and part:
            parts = layout.layers.setdefault(found["path"], {})
            _refuse_second(parts.get(part), key, origin=origin)
            parts[part] = key
        elif ".lora_" in name:
            raise AdapterError(
                f"{origin}: tensor {key} is not part of a linear or embedding LoRA layer; "
                "expected lora_A.weight, lora_B.weight, lora_embedding_A or lora_embedding_B"
            )
        else:
            path = name.removesuffix(".default")
            # Of an embedding that is trained whole PEFT may write both, the same tensor twice.
            if _MODULES_TO_SAVE not in layout.dense.get(path, _MODULES_TO_SAVE):
                _refuse_second(layout.dense[path], key, origin=origin)
            layout.dense[path] = key
    _leave_frozen_weights(layout, origin=origin)
    return layout


def _refuse_second(first: str | None, key: str, *, origin: str) -> None:
    if first is not None:
        raise AdapterError(f"{origin}: {first} and {key} are one tensor by their names; expected one of them")


def _leave_frozen_weights(layout: Layout, *, origin: str) -> None:
    """Take the frozen weights below adapted embeddings out: with "auto" PEFT saves them whole, beside the pair.

    Raises:
        AdapterError: there is one below a linear layer, so that this is a whole model's state dict.
    """
    for path, parts in layout.layers.items():
        frozen = f"{path}.base_layer.weight"
        if "embedding_A" in parts:
            layout.dense.pop(frozen, None)
        elif frozen in layout.dense:
            raise AdapterError(
                f"{origin}: tensor {layout.dense[frozen]} is a frozen weight of the base model; an adapter holds what "
                "was trained, as get_peft_model_state_dict(model) gives it"
            )


def layer_from(
    path: str, parts: Mapping[str, str], read: Callable[[str], Tensor], scaling: Callable[[int], float], *, origin: str
) -> LoraLayer:
    """Return the layer at `path` whose parts have these keys; `scaling` gives it from the rank.

    Raises:
        AdapterError: A or B is missing, or they do not fit together.
    """
    is_embedding = any(part.startswith("embedding") for part in parts)
    key_A, key_B = ("embedding_A", "embedding_B") if is_embedding else ("A", "B")
    tensors = {part: read(key) for part, key in parts.items()}
    A, B, bias, magnitude = (tensors.get(part) for part in (key_A, key_B, "bias", "magnitude"))
    if A is None or B is None:
        lacking = key_B if B is None and A is not None else key_A
        raise AdapterError(f"{origin}: {path} has no lora_{lacking}; a LoRA layer needs both A and B")
    _check_shapes(path, A.shape, B.shape, origin=origin)
    for what, vector in (("lora_B.bias", bias), ("lora_magnitude_vector", magnitude)):
        if vector is not None and vector.shape != B.shape[:1]:
            raise AdapterError(
                f"{origin}: {path} has {what} {tuple(vector.shape)}; expected ({B.shape[0]},), the rows of its B"
            )
    return LoraLayer(A, B, scaling(A.shape[0]), bias, magnitude, is_embedding)


def _check_shapes(path: str, A: Iterable[int], B: Iterable[int], *, origin: str) -> None:
    """Check that the shapes of A and B are those of one linear or embedding layer.

    Raises:
        AdapterError: they are not.
    """
    A, B = tuple(A), tuple(B)
    if len(A) in (3, 4, 5) and len(A) == len(B):
        raise AdapterError(
            f"{origin}: {path} has A {A}, B {B}, a convolution's; fedlora takes linear and embedding layers only"
        )
    if len(A) != 2 or len(B) != 2 or A[0] != B[1] or A[0] == 0:
        raise AdapterError(f"{origin}: {path} has A {A}, B {B}; expected A (rank, in_features), B (out_features, rank)")


def factor_of(key: str) -> str:
    """Return "A" or "B" for the key of a pair's factor as PEFT saves it, nothing for that of any other tensor."""
    found = _FACTOR.search(key)
    return found[1] or found[2] if found else ""


def is_trained(key: str, trains: Collection[str]) -> bool:
    """Return whether a round that trains these factors trains the tensor: what is no factor always is."""
    return all(factor in trains for factor in factor_of(key))


def is_embedding_key(key: str) -> bool:
    """Return whether the key of a pair's factor, as PEFT saves it, is an embedding's."""
    found = _FACTOR.search(key)
    return found is not None and found[1] is not None


def to_state_dict(adapter: Adapter, *, has_dense: bool = False) -> dict[str, Tensor]:
    """Return the adapter's tensors under the key names of `PeftModel.save_pretrained`, contiguous.

    A change of the base weights, of which PEFT knows nothing, comes under names of ours.

    Args:
        has_dense: whether a change that is the identity and a matrix comes as that matrix alone.
    """
    return {key: tensor.contiguous() for key, tensor in named_tensors(adapter, has_dense=has_dense)}


def named_tensors(adapter: Adapter, *, has_dense: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield the adapter's tensors with their keys, layer by layer: of an adapter on disk one layer is in memory."""
    for path, layer in adapter.layers.items():
        yield from layer_tensors(path, layer)
    for path, tensor in adapter.dense.items():
        yield path_key(path), tensor
    for path, layer in adapter.base_change.items():
        prefix = "embedding_" if layer.is_embedding else ""
        if has_dense and (dense := dense_of(layer)) is not None:
            yield f"base_change.{path}.{prefix}dense", dense
            continue
        yield f"base_change.{path}.{prefix}A", layer.A
        yield f"base_change.{path}.{prefix}B", layer.B


def layer_tensors(path: str, layer: LoraLayer) -> list[tuple[str, Tensor]]:
    """Return the tensors of the layer at `path` with their keys."""
    if layer.is_embedding:
        parts = [("embedding_A", layer.A), ("embedding_B", layer.B)]
    else:
        parts = [("A.weight", layer.A), ("B.weight", layer.B)]
        if layer.bias is not None:
            parts.append(("B.bias", layer.bias))
        if layer.magnitude is not None:
            parts.append(("magnitude_vector", layer.magnitude))
    return [(f"{PREFIX}{path}.lora_{part}", tensor) for part, tensor in parts]


def path_key(path: str) -> str:
    """Return the key of the tensor at `path` of the base model that is trained whole."""
    return f"{PREFIX}{path}"
