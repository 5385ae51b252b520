"""What the model of a client's own trainer must be: the run's base model by its tensors, and its first adapter."""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from peft import PeftModel
from torch import Tensor, nn

from fedlora.adapters import pack
from fedlora.adapters.targets import is_named
from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.common.random_streams import stream_seed
from fedlora.models.base_model import load_base_model
from fedlora.training.peft_bridge import add_lora

_OF_LORA = re.compile(r"(^|\.)(lora_\w+|modules_to_save)\.")


@dataclass(frozen=True)
class Mark:
    """What tells a tensor from another one."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True, eq=False)
class Reference:
    """The run's base model, without its weights.

    Attributes:
        marks: of each frozen tensor, by its name in the model without LoRA layers.
        heads: paths of its modules that start untrained and are trained whole.
        unreached: what gets no LoRA, as it has no part in the logits.
        initial: the run's first adapter, packed, before anything is taken out of the base weights.
        adapted_bytes: what the weights that it is for take in float32.
    """

    marks: Mapping[str, Mark]
    heads: tuple[str, ...]
    unreached: frozenset[str]
    peft_task_type: str | None
    metric_name: str
    fingerprint: str
    fingerprints: Mapping[str, str]
    initial: bytes
    adapted_bytes: int


def load_reference(config: RunConfig) -> Reference:
    """Return what the run file says of a client's model; the run's own copy of it is read once, and let go.

    Raises:
        ModelError: it cannot be read, or takes no such LoRA layers.
        ConfigError: the run's own task is not installed.
    """
    # Every site draws the same fresh weights, so that any of them can give the run's first adapter.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.run.seed, purpose="initialise"))
        base = load_base_model(config, config.data.labels)
        marks = marks_of(base.module, without=(*base.heads, *config.lora.modules_to_save))
        resident = add_lora(
            base.module,
            config.lora,
            heads=base.heads,
            task_type=base.peft_task_type,
            name=config.model.name,
            unreached=base.unreached,
        )
    initial = resident.read()
    return Reference(
        marks,
        base.heads,
        base.unreached,
        base.peft_task_type,
        base.task.metric_name,
        base.fingerprint,
        base.fingerprints,
        pack(initial),
        sum(4 * layer.B.shape[0] * layer.A.shape[1] for layer in initial.layers.values()),
    )


def marks_of(module: nn.Module, *, without: Collection[str]) -> dict[str, Mark]:
    """Return the marks of a model's frozen tensors by their names without LoRA layers, whether it has such or not.

    Args:
        without: modules that are trained whole, as PEFT means them.
    """
    plain: nn.Module = module.get_base_model() if isinstance(module, PeftModel) else module
    found: dict[str, Mark] = {}
    for name, tensor in plain.state_dict().items():
        if _OF_LORA.search(name) or not isinstance(tensor, Tensor):
            continue
        own_name = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if not any(is_named(path, tuple(without)) for path in accumulate(own_name.split("."), "{}.{}".format)):
            found[own_name] = _mark(tensor)
    return found


def require_same_base(found: Mapping[str, Mark], expected: Mapping[str, Mark], *, name: str) -> None:
    """Check that a trainer's model has the run's base weights.

    Args:
        name: of the run's base model, as the run file has it.

    Raises:
        ModelError: it has not.
    """
    remedy = f"load the run's base model, {name}, at its revision and in model.dtype, and leave its weights as they are"
    for tensor in sorted(found.keys() | expected.keys()):
        own, whole = found.get(tensor), expected.get(tensor)
        if own is None:
            raise ModelError(f"make_trainer: the model has no {tensor}; {remedy}")
        if whole is None:
            raise ModelError(f"make_trainer: the model has an extra {tensor}; {remedy}")
        if str(own) != str(whole):
            raise ModelError(f"make_trainer: the model's {tensor} is {own}, the run's {whole}; {remedy}")
        if own != whole:
            raise ModelError(f"make_trainer: the model's {tensor} has other values than the run's; {remedy}")


def _mark(tensor: Tensor) -> Mark:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(raw.data).hexdigest()  # Not copied: an embedding may take gigabytes.
    return Mark(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)
