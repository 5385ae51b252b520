"""Causal language models: the base models of causal_lm."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedlora.common.config import CausalLm, RunConfig
from fedlora.common.errors import ModelError, one_line
from fedlora.models.checkpoint import UNREADABLE, Checkpoint
from fedlora.models.model_loading import BaseModel, load_module, load_tokenizer, require_weights, text_fingerprints
from fedlora.models.reach import without_gradient
from fedlora.models.vocabulary import require_embeddings, text_settings
from fedlora.training import tasks

_CHECKED_LENGTHS = (5, 9)
_CHECKED_TOLERANCE = 0.02
_EXAMPLE_LENGTH = 8


def load_language_model(checkpoint: Checkpoint, config: RunConfig, section: CausalLm) -> BaseModel:
    """Return a causal language model with its tokenizer.

    Raises:
        ModelError: it is unreadable, no such model, has fewer positions or embeddings than the run or its tokenizer
            need, or is to be packed and cannot keep packed examples apart.
    """
    if type(checkpoint.settings) not in AutoModelForCausalLM._model_mapping:
        raise ModelError(
            f"model.name: {checkpoint.name} ({checkpoint.settings.model_type}) is no causal language model; "
            f"{section.kind} needs one"
        )
    try:
        tokenizer = load_tokenizer(checkpoint.folder, name=checkpoint.name)
        model, loading = load_module(AutoModelForCausalLM, checkpoint, config)
    except UNREADABLE as error:
        raise ModelError(f"model.name: cannot load {checkpoint.name}: {one_line(error)}") from error
    names = [name for name, _ in model.named_parameters()]
    require_weights(checkpoint, loading, names, whole=config.lora.modules_to_save)
    require_positions(model.config, section, checkpoint.name)
    require_embeddings(tokenizer, model.get_input_embeddings(), checkpoint.name)
    # Kept keys and values are for generating; in training they would take memory and be thrown away.
    model.config.use_cache = False
    if config.train.packing:
        _require_apart(model, checkpoint)
    task = tasks.CausalLm(
        tokenizer,
        max_length=section.max_length,
        too_long=section.too_long,
        chat_template=section.chat_template,
        system=section.system,
        special_tokens=section.special_tokens,
        packs=config.train.packing,
        picks_positions="logits_to_keep" in inspect.signature(model.forward).parameters,
    )
    return BaseModel(
        model,
        (),
        task,
        "CAUSAL_LM",
        checkpoint.fingerprint(),
        tokenizer=tokenizer,
        fingerprints=text_fingerprints(tokenizer, section.chat_template),
        unreached=without_gradient(model, _example(model)),
    )


def require_positions(settings: Any, section: CausalLm, name: str) -> None:
    """Refuse examples that are longer than a language model was made for, by transformers' configuration of it."""
    most = getattr(text_settings(settings), "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < section.max_length:
        raise ModelError(f"task.max_length is {section.max_length}; {name} takes at most {most} tokens")


def _example(model: Any) -> dict[str, Tensor]:
    input_ids = torch.zeros(1, _EXAMPLE_LENGTH, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


@torch.no_grad()
def _require_apart(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse to pack examples for a model in which one then sees another, such as one with recurrent layers."""
    model.eval()
    device = model.get_input_embeddings().weight.device
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randint(model.get_input_embeddings().num_embeddings, (1, length), generator=generator).to(device)
        for length in _CHECKED_LENGTHS
    ]
    positions = [torch.arange(length, device=device)[None] for length in _CHECKED_LENGTHS]
    try:
        packed = model(input_ids=torch.cat(parts, 1), position_ids=torch.cat(positions, 1)).logits.float()
    except UNREADABLE as error:
        raise ModelError(f"train.packing: {checkpoint.name} cannot be packed ({one_line(error)})") from error
    alone = torch.cat([model(input_ids=part).logits for part in parts], 1).float()
    difference = (packed - alone).abs().max() / alone.abs().max()
    if difference > _CHECKED_TOLERANCE:
        raise ModelError(
            f"train.packing: in {checkpoint.name} packed examples see each other (their logits change by "
            f"{difference:.0%}); set it to false"
        )
