"""What a site may give as a run's first adapter: the names, shapes and values of its tensors, and no word of its own.

The configuration is built here from the run file. Of the site's own only a few answers are looked at, to which of two
or three words of ours is right: whether a list of names chooses the layers, and which modules are trained whole.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer, unpack
from fedlora.adapters.fit import bad_value, other_form
from fedlora.adapters.keys import Layout, layout_of, named_tensors
from fedlora.adapters.meaning import difference_in_meaning, is_unset
from fedlora.adapters.packed import packed_config, packed_names
from fedlora.adapters.settings import SHAPE_KEYS, rank_of
from fedlora.adapters.targets import is_named
from fedlora.common.config import BASE_CHANGING_INITS, CausalLm, LoraSection, RunConfig, SequenceClassification
from fedlora.common.errors import AdapterError
from fedlora.common.packed_file import Packed, packed_bytes
from fedlora.server.rounds.admission import Refusal

_MAX_TENSORS = 100_000
_MAX_NAME = 400
_INITS_OF_PEFT = ("gaussian", "orthogonal")
# An orthogonal start's B A is nothing but rounding.
_ROUNDING = 1e-4
# By so much of their norm tensors of different machines may differ, and products of singular vectors.
_ALIKE = 1e-4


def checked_start(packed: Packed, config: RunConfig) -> Adapter | Refusal:
    """Return the first adapter in `packed` with the run's own configuration, or why it cannot be the run's.

    Its pairs have the run's ranks and scalings, all numbers are float32, finite and of a size that can be computed
    with, and what it adds to the base model is nothing yet. Whether its values are those that the run's seed gives,
    only another site can tell.
    """
    try:
        raw = packed_bytes(packed)
        names = packed_names(raw)
        if len(names) > _MAX_TENSORS or any(len(name) > _MAX_NAME for name in names):
            return Refusal("unreadable", f"more than {_MAX_TENSORS:,} tensors, or names over {_MAX_NAME} characters")
        layout, said = layout_of(names, origin="first adapter"), packed_config(raw)
        if refusal := _other_settings(said, config.lora):
            return refusal
        known = _config(config, layout, said)
        if difference := difference_in_meaning(said, known):
            return Refusal("configuration", repr(str(difference)))
        adapter = unpack(raw, config=known)
        return _refused(adapter, config.lora) or adapter
    except (AdapterError, OSError) as error:
        return Refusal("unreadable", repr(str(error)))  # It may quote what a site has chosen.
    except RecursionError:
        return Refusal("unreadable", "a configuration of lists within lists, too deep to be read")


def are_alike(one: Adapter, other: Adapter) -> bool:
    """Return whether two first adapters are the same up to the rounding of different machines.

    Of pairs that come out of the base weights the products are compared: of a singular vector the sign is anybody's.
    """
    if one.config != other.config or other_form(replace(one, base_change={}), other) is not None:
        return False
    if any(not _is_close(one.dense[path], tensor) for path, tensor in other.dense.items()):
        return False
    by_product = bool(one.base_change)
    return all(_is_pair_close(one.layers[path], pair, by_product=by_product) for path, pair in other.layers.items())


def _is_pair_close(one: LoraLayer, other: LoraLayer, *, by_product: bool) -> bool:
    if not by_product:
        return all(map(_is_close, one.tensors(), other.tensors()))
    difference = _product_norm(torch.cat([one.A, other.A]), torch.cat([one.B, -other.B], dim=1))
    return difference <= _ALIKE * _product_norm(one.A, one.B)


def _is_close(one: Tensor, other: Tensor) -> bool:
    return float((one.double() - other.double()).norm()) <= _ALIKE * float(one.double().norm())


def _other_settings(said: Mapping[str, object], lora: LoraSection) -> Refusal | None:
    """Return in what a site's ranks and scalings are not the run's. Its expressions are compared, and not evaluated."""
    if said.get("peft_type") != "LORA":
        return Refusal("configuration", f"peft_type is {said.get('peft_type')!r}; expected 'LORA'")
    ours = _shape_settings(lora)
    for key in SHAPE_KEYS:
        found, expected = said.get(key) or None, ours[key] or None
        if found != expected:
            return Refusal("configuration", f"{key} is {found!r}; expected {expected!r}")
    return None


def _shape_settings(lora: LoraSection) -> dict[str, object]:
    return {
        "r": lora.rank,
        "rank_pattern": dict(lora.rank_pattern),
        "lora_alpha": lora.alpha,
        "alpha_pattern": dict(lora.alpha_pattern),
        "use_rslora": lora.use_rslora,
    }


def _config(config: RunConfig, layout: Layout, said: Mapping[str, object]) -> dict[str, object]:
    """Return PEFT's configuration of the run's adapter.

    Raises:
        AdapterError: there are tensors beside the pairs that belong to no module which the site says it trains whole.
    """
    lora = config.lora
    targets, excluded = _targets(lora, sorted(layout.layers), said)
    return {
        "peft_type": "LORA",
        "task_type": _task_type(config),
        "base_model_name_or_path": config.model.name,
        "inference_mode": True,
        **_shape_settings(lora),
        "use_dora": lora.use_dora,
        "init_lora_weights": lora.init if lora.init in _INITS_OF_PEFT else True,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "fan_in_fan_out": said.get("fan_in_fan_out") is True,
        "target_modules": targets,
        **({"exclude_modules": excluded} if excluded else {}),
        "modules_to_save": _whole_modules(layout.dense, said.get("modules_to_save")) or None,
    }


def _targets(lora: LoraSection, paths: list[str], said: Mapping[str, object]) -> tuple[object, object]:
    """Return `target_modules` and `exclude_modules`: the run's own words where they say it all, else the layers' paths.

    What gets no gradient and what a model ties or fuses is left out at the sites, which know the model.

    Raises:
        AdapterError: the run's words do not choose one of the layers.
    """
    given, excluded = _as_peft_has_it(lora.target_modules), _as_peft_has_it(lora.exclude_modules)
    chosen: object = given
    if given in ("auto", "all-linear"):
        chosen = sorted({path.rpartition(".")[2] for path in paths})
    for path in paths:
        if isinstance(given, list) and not is_named(path, given):
            raise AdapterError(f"{path} has a pair, and lora.target_modules does not name it")
        if isinstance(excluded, list) and is_named(path, excluded):
            raise AdapterError(f"{path} has a pair, and lora.exclude_modules names it")
    named = [_as_peft_has_it(said.get(f"{which}_modules")) for which in ("target", "exclude")]
    return (chosen, excluded) if named == [chosen, excluded] else (paths, [])


def _as_peft_has_it(modules: object) -> object:
    """Return an expression as it is, and a set of names in their order; what is no such thing is none of either."""
    if isinstance(modules, str):
        return modules
    if isinstance(modules, list | tuple) and all(isinstance(name, str) for name in modules):
        return sorted(modules)
    return [] if is_unset(modules) else None


def _whole_modules(dense: Iterable[str], said: object) -> list[str]:
    """Return the modules that are trained whole, each by a name that its tensors have in their path.

    Raises:
        AdapterError: a tensor belongs to none of those that are said.
    """
    names = [name for name in dict.fromkeys(said if isinstance(said, list) else []) if isinstance(name, str) and name]
    found: list[str] = []
    for path in dense:
        owners = [name for name in names if f".{name}." in f".{path}."]
        if not owners:
            raise AdapterError(f"{path} is no part of a pair, nor of a module that is trained whole")
        found += owners
    return [name for name in names if name in found]


def _task_type(config: RunConfig) -> str | None:
    if isinstance(config.task, CausalLm):
        return "CAUSAL_LM"
    return "SEQ_CLS" if isinstance(config.task, SequenceClassification) and config.model.head == "auto" else None


def _refused(adapter: Adapter, lora: LoraSection) -> Refusal | None:
    if not adapter.layers:
        return Refusal("missing_layer", "no LoRA pair")
    for path, layer in adapter.layers.items():
        if layer.rank != (rank := rank_of(path, adapter.config)):
            return Refusal("shape", f"{path!r} has rank {layer.rank}; expected {rank}")
        if layer.bias is not None or (layer.magnitude is not None) != lora.use_dora:
            return Refusal("unexpected_layer", f"{path!r} has parts that lora.use_dora = {lora.use_dora} does not give")
    for name, tensor in named_tensors(replace(adapter, base_change={})):
        if tensor.dtype != torch.float32:
            return Refusal("dtype", f"{name!r} is {tensor.dtype}; expected {torch.float32}")
        if misfit := bad_value([(repr(name), tensor)]):
            return Refusal(misfit.code, misfit.found)
    for path, layer in adapter.layers.items():
        if found := _no_start(layer, lora.init):
            return Refusal("not_a_start", f"{path!r}: {found}")
    return _other_change(adapter, lora)


def _no_start(layer: LoraLayer, init: str) -> str:
    """Return why a pair cannot be what `init` begins with: it adds nothing to its layer, and can be trained."""
    zero, other = (layer.A, layer.B) if layer.is_embedding else (layer.B, layer.A)
    if init in BASE_CHANGING_INITS or (init == "orthogonal" and not layer.is_embedding):
        size = float(layer.A.norm() * layer.B.norm())
        if init == "orthogonal" and _product_norm(layer.A, layer.B) > _ROUNDING * size:
            return "B A is not zero"
        return "" if size > 0 else "A or B is zero"
    if zero.any():
        return f"{'A' if layer.is_embedding else 'B'} is not zero"
    return "" if other.any() else "A and B are zero"


def _other_change(adapter: Adapter, lora: LoraSection) -> Refusal | None:
    """Return in what the change of the base weights is not the pairs' own product, taken out of the weights."""
    if lora.init not in BASE_CHANGING_INITS:
        changed = next(iter(adapter.base_change), None)
        return None if changed is None else Refusal("unexpected_layer", f"a change of the base weight of {changed!r}")
    if adapter.base_change.keys() != adapter.layers.keys():
        return Refusal("missing_layer", "not as many changes of base weights as pairs")
    for path, change in adapter.base_change.items():
        layer = adapter.layers[path]
        if not (torch.equal(change.A, layer.A) and torch.equal(change.B, -layer.B * layer.scaling)):
            return Refusal("not_a_start", f"{path!r}: its change of the base weight is not what its pair adds")
    return None


def _product_norm(A: Tensor, B: Tensor) -> float:
    """Return |B A|, from products of rank x rank."""
    wide, tall = A.double(), B.double()
    return float(((wide @ wide.T) * (tall.T @ tall)).sum().clamp(min=0).sqrt())
