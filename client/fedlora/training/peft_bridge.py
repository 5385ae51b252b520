"""Between our adapters and a PEFT model in memory: built once, then loaded and read in place.

`set_peft_model_state_dict` takes 9 ms and a scan of the named parameters 1 ms for a small model;
copying into parameters that were looked up once takes 0.05 ms.
"""

import contextlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn

from fedlora.adapters import Adapter, LoraLayer
from fedlora.adapters.keys import factor_of, is_trained, to_state_dict
from fedlora.adapters.moments import filled_by
from fedlora.adapters.peft_format import from_state_dict
from fedlora.adapters.settings import SHAPE_KEYS, plain_config
from fedlora.adapters.targets import is_named
from fedlora.common.config import LoraSection
from fedlora.common.errors import AdapterError, ModelError, one_line
from fedlora.models.base_weights import BaseWeights
from fedlora.models.bitsandbytes_door import heed_bitsandbytes
from fedlora.models.checkpoint import UNREADABLE
from fedlora.models.reach import is_transposed
from fedlora.models.targets import Modules, targets_of

# PEFT's name for the one adapter of a model.
_NAME = "default"


class ResidentModel:
    """A PEFT model whose trained tensors are set and read in place.

    Attributes:
        peft_model: the base model with its LoRA layers.
        parameters: all that is trained in this round.
        base_dtype: of the frozen weights.
        notes: sentences on layers that nobody left out and that get no LoRA.
    """

    def __init__(self, peft_model: PeftModel, *, base_model_name: str, notes: tuple[str, ...] = ()) -> None:
        self.peft_model = peft_model
        self.notes = notes
        self.base_dtype = _base_dtype(peft_model)
        self._named = {
            saved_name(name): parameter for name, parameter in peft_model.named_parameters() if parameter.requires_grad
        }
        self._shapes = {name: parameter.shape for name, parameter in self._named.items()}
        self.parameters = list(self._named.values())
        self._base_weights = BaseWeights(peft_model)
        self._config = _saved_config(peft_model, base_model_name)
        # Frozen running statistics would otherwise drift from client to client through the resident model.
        self._norms = [module for module in peft_model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
        self._scaling = {path: layer.scaling for path, layer in self.read().layers.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return what is trained in this round, by the name that PEFT saves it under."""
        return {name: parameter for name, parameter in self._named.items() if parameter.requires_grad}

    @torch.no_grad()
    def taken_out_of_base(self, init: str) -> Adapter:
        """Return a first adapter out of the base weights: of their principal part ("pissa"), or of Q and R ("olora").

        The base weights stay as they are: the adapter says what is to be taken out of them, as a change that travels
        with it, so that every client has the same to the last bit.
        """
        for path in self._scaling:
            layer = cast(Any, self.peft_model.get_base_model().get_submodule(path))
            weight = layer.get_base_layer().weight
            original = weight.detach().clone()
            if init == "pissa":
                layer.pissa_init(_NAME, "pissa")
            else:
                layer.olora_init(_NAME)
            layer.get_base_layer().weight.data = original
        adapter = self.read()
        taken = {
            path: LoraLayer(layer.A.clone(), -layer.B * layer.scaling, 1.0, is_embedding=layer.is_embedding)
            for path, layer in adapter.layers.items()
        }
        return replace(adapter, base_change=taken)

    def save_memory(self) -> None:
        """Keep no activations within the model's layers, and compute them again for the gradients.

        Raises:
            ModelError: the model's class does not know how.
        """
        model = self.peft_model.get_base_model()
        try:
            cast(Any, model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        except (AttributeError, ValueError) as error:
            raise ModelError(
                f"train.gradient_checkpointing: {type(model).__name__} does not support it; set it to false"
            ) from error

    def set_training(self, is_training: bool) -> None:
        """Switch dropout on or off; batch statistics stay those of the checkpoint."""
        self.peft_model.train(is_training)
        for norm in self._norms:
            norm.eval()

    def is_finite(self) -> bool:
        """Return whether every number in the adapter is."""
        found = [parameter.detach().isfinite().all() for parameter in self._named.values()]
        return bool(torch.stack([one.to(found[0].device) for one in found]).all())

    def read(self) -> Adapter:
        """Return a copy of the adapter in the model, with the ranks and the configuration it was loaded with.

        It is on the CPU in float32, and without a change of the base weights: that is the server's.
        """
        tensors = {name: self._filled(name).detach().to("cpu", torch.float32, copy=True) for name in self._named}
        return from_state_dict(tensors, self._config, origin="model")

    @torch.no_grad()
    def load(self, adapter: Adapter, *, trains: Collection[str] = ("A", "B")) -> None:
        """Copy `adapter` into the model, its change of the base weights included.

        A pair of a smaller rank than the model's fills the first rows of A and columns of B, and the rest is zero.
        There both factors have no gradient and stay zero, so that the client trains its own rank.

        Args:
            trains: the factors that are trained; what is trained whole beside the pairs always is.

        Raises:
            AdapterError: a layer or tensor is missing, or one has another shape or scaling; the model is unchanged.
            ModelError: there is a change of base weights that are quantised.
        """
        given = to_state_dict(replace(adapter, base_change={}))
        self._check(given)
        for path, layer in adapter.layers.items():
            if not math.isclose(layer.scaling, self._scaling[path]):
                raise AdapterError(
                    f"the adapter's {path} acts with {layer.scaling:g} B A (alpha / rank); "
                    f"the run's with {self._scaling[path]:g} B A"
                )
        self._base_weights.change(adapter.base_change)
        self._config |= {key: adapter.config[key] for key in SHAPE_KEYS if key in adapter.config}
        self._shapes = {name: tensor.shape for name, tensor in given.items()}
        for name, parameter in self._named.items():
            parameter.requires_grad_(is_trained(name, trains))
            if parameter.shape != self._shapes[name]:
                parameter.zero_()
            self._filled(name).copy_(given[name])
        self.parameters = [parameter for parameter in self._named.values() if parameter.requires_grad]

    @torch.no_grad()
    def change_since(self, former: Adapter) -> list[Tensor]:
        """Return by how much each of `parameters` is beyond what it is in an adapter of the same shapes.

        A change of the base weights is left aside.

        Raises:
            AdapterError: a tensor is missing there, or has another shape than in the adapter that was loaded.
        """
        given = to_state_dict(replace(former, base_change={}))
        changes = []
        for name, parameter in self.trained().items():
            found = given[name].shape if name in given else None
            if found != self._shapes[name]:
                raise AdapterError(
                    f"the former adapter has {'no ' * (found is None)}{name} {'' if found is None else tuple(found)}; "
                    f"expected {tuple(self._shapes[name])}, as in the one that follows it"
                )
            # Beyond the rank of both, the model's own stays as it is.
            change = torch.zeros_like(parameter)
            part = change[filled_by(self._shapes[name])]
            part.copy_(self._filled(name)).sub_(given[name].to(part))
            changes.append(change)
        return changes

    def part_of(self, name: str, tensor: Tensor) -> Tensor:
        """Return the part of a tensor of a parameter's shape that the loaded adapter fills, by the parameter's name."""
        return tensor[filled_by(self._shapes[name])]

    def _filled(self, name: str) -> Tensor:
        """Return the part of a parameter that the loaded adapter fills: all of it, unless its rank is smaller."""
        return self._named[name][filled_by(self._shapes[name])]

    def _check(self, given: Mapping[str, Tensor]) -> None:
        missing, extra = self._named.keys() - given.keys(), given.keys() - self._named.keys()
        if missing or extra:
            what, name = ("no", sorted(missing)[0]) if missing else ("an extra", sorted(extra)[0])
            raise AdapterError(
                f"the adapter has {what} tensor {name}; the run trains {len(self._named)} tensors, "
                "of the same rank, target modules and heads in every adapter"
            )
        for name, parameter in self._named.items():
            if not _fits_into(name, given[name].shape, parameter.shape):
                raise AdapterError(
                    f"the adapter has {name} {tuple(given[name].shape)}; the run has {tuple(parameter.shape)}"
                )


def add_lora(
    module: nn.Module,
    settings: LoraSection,
    *,
    heads: tuple[str, ...],
    task_type: str | None = None,
    name: str,
    unreached: Collection[str] = (),
) -> ResidentModel:
    """Return `module` with LoRA layers and trained heads; fresh weights come from torch's global generator.

    Args:
        heads: module paths that are trained whole.
        task_type: PEFT's task type.
        name: the base model's name, for the adapter's configuration and for errors.
        unreached: of the base model, what would get no gradient: it gets no LoRA.

    Raises:
        ModelError: target modules or heads match nothing or too much, or PEFT refuses them; a layer shares its weights
            with another; or the rank is larger than a layer allows.
    """
    whole = (*heads, *_whole_modules(module, settings, heads, name, unreached=unreached))
    _require_heads(module, whole, name)
    targets = targets_of(
        module, settings, whole, name, unreached=unreached, is_rewritten=partial(_is_rewritten, module)
    )
    peft_config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=dict(settings.alpha_pattern),
        use_rslora=settings.use_rslora,
        lora_dropout=settings.dropout,
        target_modules=_for_peft(targets.modules),
        exclude_modules=_for_peft(targets.excluded) or None,
        modules_to_save=list(whole) or None,
        use_dora=settings.use_dora,
        init_lora_weights=cast(Any, settings.init if settings.init in ("gaussian", "orthogonal") else True),
        task_type=cast(Any, task_type),
        fan_in_fan_out=all(is_transposed(module.get_submodule(path)) for path in targets.paths),
    )
    heed_bitsandbytes()
    try:
        with _without_peft_warnings():
            peft_model = get_peft_model(cast(Any, module), peft_config)
    except (ValueError, TypeError, re.error) as error:
        raise ModelError(
            f"lora: PEFT refuses it for {name} ({one_line(error)}); lora.exclude_modules leaves layers out"
        ) from error
    if not isinstance(peft_model, PeftModel):
        raise TypeError(f"PEFT returned {type(peft_model).__name__}; a mixed model is not supported")
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            # Small steps are lost in half of the bits.
            parameter.data = parameter.data.float()
    return ResidentModel(peft_model, base_model_name=name, notes=targets.notes)


def with_saved_adapter(module: nn.Module, folder: Path) -> PeftModel:
    """Return `module` with the adapter in a PEFT folder, heads included, in evaluation mode.

    Raises:
        AdapterError: the adapter is damaged, or of another model.
    """
    heed_bitsandbytes()
    try:
        with _without_peft_warnings():
            return PeftModel.from_pretrained(cast(Any, module), str(folder)).eval()
    except UNREADABLE as error:
        raise AdapterError(f"{folder}: does not fit the base model ({one_line(error)})") from error


def _require_heads(module: nn.Module, heads: tuple[str, ...], name: str) -> None:
    paths = [path for path, _ in module.named_modules()]
    for head in heads:
        if head not in paths:
            parts = ", ".join(child for child, _ in module.named_children())
            raise ModelError(f"heads: {head!r} is no module of {name}; its outermost ones are {parts}")
        # PEFT goes by how a path ends, and would train these whole too.
        if also := [path for path in paths if path.endswith(head) and path not in heads]:
            raise ModelError(
                f"heads: {head!r} of {name} is also how {also[0]} ends, and PEFT does not tell them apart; "
                'rename one of them, or use model.head = "linear"'
            )


def _whole_modules(
    module: nn.Module, settings: LoraSection, heads: tuple[str, ...], name: str, *, unreached: Collection[str]
) -> tuple[str, ...]:
    """Return the paths that `modules_to_save` means, which is by how they end, as in PEFT."""
    paths = [path for path, _ in module.named_modules() if path]
    found: list[str] = []
    for end in settings.modules_to_save:
        matched = [path for path in paths if is_named(path, (end,))]
        if not matched:
            parts = ", ".join(child for child, _ in module.named_children())
            raise ModelError(f"lora.modules_to_save: {end!r} is no module of {name}; its outermost ones are {parts}")
        for path in matched:
            names = [f"{path}.{parameter}" for parameter, _ in module.get_submodule(path).named_parameters()]
            if names and all(parameter in unreached for parameter in names):
                raise ModelError(
                    f"lora.modules_to_save: {path} of {name} gets no gradient from this task's inputs; leave it out"
                )
        found += [path for path in matched if path not in heads and path not in found]
    inside = {id(parameter) for path in found for parameter in module.get_submodule(path).parameters()}
    for path, child in module.named_modules():
        is_found = any(path == other or path.startswith(f"{other}.") for other in found)
        if is_found or any(other.startswith(f"{path}.") or not path for other in found):
            continue
        if any(id(parameter) in inside for parameter in child.parameters(recurse=False)):
            raise ModelError(
                f"lora.modules_to_save: {', '.join(found)} of {name} shares its weights with {path}, and training one "
                "whole would part them; leave it out"
            )
    return tuple(found)


def _is_rewritten(module: nn.Module, modules: Modules) -> bool:
    """Return whether PEFT takes names for those of experts that transformers has since fused into one tensor."""
    given = list(modules) if isinstance(modules, tuple) else modules
    config = LoraConfig(target_modules=given)
    try:
        convert_peft_config_for_transformers(config, cast(Any, module), None)
    except ValueError:
        return True  # a part of what is fused
    return bool(config.target_parameters) or (isinstance(given, str) and config.target_modules != given)


def _fits_into(name: str, found: torch.Size, whole: torch.Size) -> bool:
    """Return whether a tensor has the parameter's shape, or that of a smaller rank."""
    rank_axis = {"A": 0, "B": 1}.get(factor_of(name))
    if len(found) != len(whole):
        return False
    return all(n == m or (axis == rank_axis and n < m) for axis, (n, m) in enumerate(zip(found, whole, strict=True)))


def _base_dtype(peft_model: PeftModel) -> torch.dtype:
    """Return the type that most frozen numbers have; of quantised weights the one they are computed in."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in peft_model.parameters():
        if not parameter.requires_grad:
            dtype = parameter.dtype if parameter.is_floating_point() else torch.bfloat16
            sizes[dtype] += parameter.numel()
    return sizes.most_common(1)[0][0] if sizes else torch.float32


def saved_name(name: str) -> str:
    """Return a live parameter's name as PEFT saves it."""
    name = re.sub(r"\.(lora_(?:embedding_)?[AB])\.default(?=\.|$)", r".\1", name)
    name = name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
    return name.replace(".modules_to_save.default.", ".")


def _saved_config(peft_model: PeftModel, base_model_name: str) -> dict[str, object]:
    """Return adapter_config.json as PEFT saves it, but with the run's own name for the base model."""
    config = plain_config(peft_model.peft_config["default"].to_dict())
    return config | {"inference_mode": True, "base_model_name_or_path": base_model_name, "auto_mapping": None}


def _for_peft(modules: Modules) -> str | list[str]:
    return modules if isinstance(modules, str) else list(modules)


@contextlib.contextmanager
def _without_peft_warnings() -> Iterator[None]:
    """Keep from the terminal what PEFT asks of transformers by a name that transformers has since changed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield
