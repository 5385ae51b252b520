"""A run's model with its LoRA layers, on the meta device: all shapes and no numbers, from config.json alone."""

import inspect
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from fedlora.adapters import Adapter
from fedlora.common.config import CausalLm, ImageClassification, OwnTask, RunConfig, SequenceClassification
from fedlora.common.errors import ConfigError, ModelError, one_line
from fedlora.models.checkpoint import OPTIONS, UNREADABLE
from fedlora.models.classifiers import OWN_HEADS, embeddings_of, encoder_part, require_kind, require_room
from fedlora.models.language_model import require_positions
from fedlora.models.pooled_classifier import HEAD, PooledClassifier
from fedlora.models.reach import without_gradient
from fedlora.models.vocabulary import require_embeddings
from fedlora.training.footprint.fake import StayingOnMeta, move_to
from fedlora.training.footprint.grouped import GroupedProducts
from fedlora.training.footprint.quantised import quantise
from fedlora.training.footprint.settings import read_settings, read_tokenizer
from fedlora.training.peft_bridge import add_lora

ASSUMED_LABELS = 10

_FAMILIES: dict[str, Any] = {
    "image_classification": AutoModelForImageClassification,
    "sequence_classification": AutoModelForSequenceClassification,
    "causal_lm": AutoModelForCausalLM,
}
_FACTOR = r"\.lora_(?:embedding_)?([AB])\b"
_FEW_TOKENS = 8
_NUM_BITS = {"8bit": 8, "4bit": 4}


@dataclass(frozen=True, eq=False)
class RunOutline:
    """A run's model without numbers.

    Attributes:
        model: on the meta device; what is trained requires gradients.
        adapter: what travels, in shapes.
        num_parameters: of the base model, with its heads.
        num_trained: numbers that are trained.
        picks_positions: whether the model computes the logits of some positions only when asked to.
        notes: sentences on layers that nobody left out and that get no LoRA, and on what could not be looked at.
    """

    model: nn.Module
    adapter: Adapter
    num_parameters: int
    num_trained: int
    picks_positions: bool
    notes: tuple[str, ...]


def outline_of(config: RunConfig, *, trains: Collection[str] = ("A", "B")) -> RunOutline:
    """Return the outline of a run's model.

    Args:
        config: the run.
        trains: the factors of the pairs that are trained.

    Raises:
        ConfigError: the task is the user's own, of which only the task itself knows.
        ModelError: config.json is missing or of another kind of model, or the model does not take the run's inputs,
            its ranks or its target modules.
    """
    if isinstance(config.task, OwnTask):
        raise ConfigError(
            f"task.kind = own: what {config.task.name!r} gives its model is known when it runs, and cannot be planned; "
            "a simulation with federation.rounds=1 shows it"
        )
    settings = read_settings(config.model)
    _require_class(settings, config)
    try:
        module, heads = _base_model(settings, config)
    except UNREADABLE as error:
        raise unplannable(config, error) from error
    notes = _tokens_notes(module, config)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    unreached = _unreached(module, config)
    # In other inits A and B have the same shapes, but are made out of the weights.
    lora = config.lora.model_copy(update={"init": "default"})
    with torch.device("meta"), StayingOnMeta(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        resident = add_lora(
            module, lora, heads=heads, task_type=_task_type(config), name=config.model.name, unreached=unreached
        )
        adapter = resident.read()
        if config.train.gradient_checkpointing:
            resident.save_memory()
    model: nn.Module = resident.peft_model
    for name, parameter in model.named_parameters():
        if not set(re.findall(_FACTOR, name)) <= set(trains):
            parameter.requires_grad = False
    if config.model.quantization != "none":
        quantise(model, num_bits=_NUM_BITS[config.model.quantization], without=_unquantised(module, heads))
    return RunOutline(
        model,
        adapter,
        num_parameters,
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "logits_to_keep" in inspect.signature(module.forward).parameters,
        (*resident.notes, *notes),
    )


def unplannable(config: RunConfig, error: Exception) -> ModelError:
    """Return the refusal of a model that cannot be built or gone through without numbers."""
    size = f" of {config.task.image_size} pixels" if isinstance(config.task, ImageClassification) else ""
    return ModelError(f"model.name: {config.model.name} cannot be planned on inputs{size}: {one_line(error)}")


def example_inputs(config: RunConfig, *, num_examples: int, num_tokens: int | None = None) -> dict[str, Tensor]:
    """Return the model's inputs for a number of examples, of zeros on the current device.

    Args:
        config: the run.
        num_examples: texts or pictures.
        num_tokens: of each text; without it as many as it may have.
    """
    if isinstance(config.task, ImageClassification):
        size = config.task.image_size
        return {"pixel_values": torch.zeros(num_examples, 3, size, size)}
    max_length = cast(CausalLm, config.task).max_length
    input_ids = torch.zeros(num_examples, min(max_length, num_tokens or max_length), dtype=torch.int64)
    if config.train.packing:
        return {"input_ids": input_ids, "position_ids": torch.zeros_like(input_ids)}
    return {"input_ids": input_ids, "attention_mask": torch.zeros_like(input_ids)}


def _base_model(settings: Any, config: RunConfig) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the run's base model on the meta device, and the modules in it that are trained whole."""
    num_labels = len(config.data.labels) or ASSUMED_LABELS
    dtype = getattr(torch, config.model.dtype)
    if isinstance(config.task, CausalLm):
        settings.use_cache = False
        require_positions(settings, config.task, config.model.name)
        module = _made(AutoModelForCausalLM, settings, dtype)
        return module, ()
    if config.model.head == "auto":
        settings.num_labels = num_labels
        settings.pad_token_id = getattr(settings, "pad_token_id", None) or 0
        model = _made(_FAMILIES[config.task.kind], settings, dtype)
        require_room(model, config)
        return model, tuple(name for name, _ in model.named_children() if name in OWN_HEADS)
    encoder = encoder_part(_made(AutoModel, settings, dtype), is_text=isinstance(config.task, SequenceClassification))
    require_room(encoder, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        move_to(encoder, "cpu")
        example = example_inputs(config, num_examples=1)
        pooled = PooledClassifier(encoder, example, num_labels=num_labels, pooling=config.model.pooling)
    move_to(pooled, "meta")
    return pooled, (HEAD,)


def _tokens_notes(module: nn.Module, config: RunConfig) -> tuple[str, ...]:
    """Refuse a tokenizer with more tokens than the model embeds; return what is to be said where there is none here."""
    if isinstance(config.task, ImageClassification):
        return ()
    if (tokenizer := read_tokenizer(config.model)) is None:
        return ("the model's tokenizer is not here; whether its tokens have embeddings shows when the run starts",)
    require_embeddings(tokenizer, embeddings_of(module), config.model.name)
    return ()


def _unreached(module: nn.Module, config: RunConfig) -> frozenset[str]:
    """Return what of a model on the meta device would get no gradient."""
    with FakeTensorMode(allow_non_fake_inputs=True), GroupedProducts():
        move_to(module, "cpu")
        found = without_gradient(module, example_inputs(config, num_examples=1, num_tokens=_FEW_TOKENS))
    move_to(module, "meta")
    return found


def _made(family: Any, settings: Any, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cast(nn.Module, family.from_config(settings, dtype=dtype, **OPTIONS))


def _require_class(settings: Any, config: RunConfig) -> None:
    require_kind(settings, config)
    kind = config.task.kind
    if (kind == "causal_lm" or config.model.head == "auto") and type(settings) not in _FAMILIES[kind]._model_mapping:
        what = "causal language model" if kind == "causal_lm" else 'classification class; use head = "linear"'
        raise ModelError(f"model.name: transformers has for {config.model.name} ({settings.model_type}) no {what}")


def _task_type(config: RunConfig) -> str | None:
    if isinstance(config.task, CausalLm):
        return "CAUSAL_LM"
    return "SEQ_CLS" if isinstance(config.task, SequenceClassification) and config.model.head == "auto" else None


def _unquantised(module: Any, heads: tuple[str, ...]) -> list[nn.Module]:
    """Return what stays as it is beside the layers that are quantised: the heads, and what gives the logits."""
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    return [*(module.get_submodule(head) for head in heads), *([output] if output is not None else [])]
