"""Encoders and classification classes: the base models of image_classification and sequence_classification."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification

from fedlora.common.config import ImageClassification, RunConfig, SequenceClassification
from fedlora.common.errors import ModelError, one_line
from fedlora.models.checkpoint import UNREADABLE, Checkpoint
from fedlora.models.model_loading import BaseModel, load_module, load_tokenizer, require_weights, text_fingerprints
from fedlora.models.pooled_classifier import HEAD, PooledClassifier
from fedlora.models.reach import without_gradient
from fedlora.models.vocabulary import require_embeddings, text_settings
from fedlora.training import tasks

OWN_HEADS = ("classifier", "pre_classifier", "score")
_POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "positions_embed", "wpe")


def load_classifier(checkpoint: Checkpoint, config: RunConfig, labels: tuple[str, ...]) -> BaseModel:
    """Return an encoder with our head, or a checkpoint's own classification class.

    Raises:
        ModelError: it is unreadable, of the wrong kind, or does not take the run's pictures or texts.
    """
    require_kind(checkpoint.settings, config)
    is_text, has_own_head = isinstance(config.task, SequenceClassification), config.model.head == "auto"
    heads: tuple[str, ...] = (HEAD,)
    try:
        tokenizer = load_tokenizer(checkpoint.folder, name=checkpoint.name) if is_text else None
        task, example, pad_token_id = _task(checkpoint, config, tokenizer)
        if has_own_head:
            module, heads = _with_own_head(checkpoint, config, labels, pad_token_id=pad_token_id)
        else:
            module = _encoder(checkpoint, config, is_text=is_text)
    except UNREADABLE as error:
        raise ModelError(f"model.name: cannot load {checkpoint.name}: {one_line(error)}") from error
    if tokenizer is not None:
        require_embeddings(tokenizer, embeddings_of(module), checkpoint.name)
        require_room(module, config)
    try:
        if has_own_head:
            with torch.no_grad():
                module.eval()(**example)
        else:
            module = PooledClassifier(module, example, num_labels=len(labels), pooling=config.model.pooling)
    except UNREADABLE as error:
        raise ModelError(f"{_what_it_refuses(checkpoint, config)} ({one_line(error)})") from error
    unreached = without_gradient(module, example)
    return BaseModel(
        module,
        heads,
        task,
        "SEQ_CLS" if is_text and has_own_head else None,
        checkpoint.fingerprint(),
        tokenizer=tokenizer,
        fingerprints={} if tokenizer is None else text_fingerprints(tokenizer),
        unreached=unreached,
    )


def _encoder(checkpoint: Checkpoint, config: RunConfig, *, is_text: bool) -> nn.Module:
    """Return the encoder of pictures or texts, which may be one part of the checkpoint."""
    model, loading = load_module(AutoModel, checkpoint, config)
    encoder = encoder_part(model, is_text=is_text)
    own = {id(parameter) for parameter in encoder.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    require_weights(checkpoint, loading, names, whole=config.lora.modules_to_save)
    return encoder


def encoder_part(model: Any, *, is_text: bool) -> nn.Module:
    """Return the part of a model that encodes pictures or texts, without a pooling layer of its own."""
    encoder: Any = getattr(model, "text_model" if is_text else "vision_model", model)
    saved_as = getattr(encoder.config, "architectures", None) or ()
    if getattr(encoder.config, "is_encoder_decoder", False) or any(name.endswith("EncoderModel") for name in saved_as):
        encoder = model.get_encoder()
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.pooler = None  # we pool ourselves, and LoRA in it would never be trained
    if hasattr(encoder.config, "mask_ratio"):
        encoder.config.mask_ratio = 0.0  # a masked autoencoder would go on hiding most of each picture
    return cast(nn.Module, encoder)


def embeddings_of(module: nn.Module) -> nn.Module | None:
    """Return a model's table of embeddings, by token; None where it has none of its own."""
    encoder: Any = module.plain_encoder if isinstance(module, PooledClassifier) else module
    try:
        return cast(nn.Module, encoder.get_input_embeddings())
    except (AttributeError, NotImplementedError):
        return None


def _with_own_head(
    checkpoint: Checkpoint, config: RunConfig, labels: tuple[str, ...], *, pad_token_id: int | None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the checkpoint's classification class, and the modules in it that start untrained.

    `pad_token_id` is None for pictures.
    """
    family = AutoModelForImageClassification if pad_token_id is None else AutoModelForSequenceClassification
    if type(checkpoint.settings) not in family._model_mapping:
        raise ModelError(
            f'model.head: transformers has no classification class for {checkpoint.name}; use head = "linear"'
        )
    numbers = {label: index for index, label in enumerate(labels)}
    model, loading = load_module(
        family, checkpoint, config, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=numbers
    )
    if pad_token_id is not None:
        # By it a decoder finds the last token of a text, so it has to be what the task pads with.
        model.config.pad_token_id = pad_token_id
    names = [name for name, _ in model.named_parameters()]
    fresh = {*loading.missing, *loading.mismatched}
    heads = {child for child, _ in model.named_children() if child in OWN_HEADS}
    for path in {key.rpartition(".")[0] for key in fresh} - {""}:
        if all(name in fresh for name in names if name.startswith(f"{path}.")):
            heads.add(path)
    outermost = sorted(head for head in heads if not any(head.startswith(f"{other}.") for other in heads))
    require_weights(checkpoint, loading, names, whole=[*outermost, *config.lora.modules_to_save])
    return model, tuple(outermost)


def _task(
    checkpoint: Checkpoint, config: RunConfig, tokenizer: Any
) -> tuple[tasks.Task[Any], dict[str, Tensor], int | None]:
    """Return the run's task, the model's inputs for one example, and what texts are padded with."""
    if isinstance(config.task, ImageClassification):
        mean, std = checkpoint.normalisation()
        size = config.task.image_size
        return tasks.ImageClassification(mean=mean, std=std), {"pixel_values": torch.zeros(1, 3, size, size)}, None
    max_length = cast(SequenceClassification, config.task).max_length

    def token_ids_of(texts: list[str], **cutting: Any) -> list[list[int]]:
        token_ids: list[list[int]] = tokenizer(texts, split_special_tokens=True, verbose=False, **cutting)["input_ids"]
        return token_ids

    def tokenize(texts: list[str]) -> list[list[int]]:
        return token_ids_of(texts, truncation=True, max_length=max_length)

    def count_cut(texts: list[str]) -> int:
        return sum(len(ids) > max_length for ids in token_ids_of(texts))

    pad_token_id = _pad_token_id(tokenizer, checkpoint.settings)
    input_ids = torch.tensor(tokenize(["an example"]))
    example = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    task = tasks.SequenceClassification(tokenize=tokenize, pad_token_id=pad_token_id, count_cut=count_cut)
    return task, example, pad_token_id


def _pad_token_id(tokenizer: Any, settings: Any) -> int:
    """Return the id to pad texts with; it is masked out, so that any will do that the model has an embedding for."""
    num_embeddings = getattr(text_settings(settings), "vocab_size", None) or len(tokenizer)
    for found in (tokenizer.pad_token_id, getattr(settings, "pad_token_id", None), tokenizer.eos_token_id):
        if isinstance(found, int) and 0 <= found < num_embeddings:
            return found
    return 0


def require_kind(settings: Any, config: RunConfig) -> None:
    """Refuse, by transformers' configuration of it, a model of pictures for texts and the other way round."""
    name, kind = config.model.name, config.task.kind
    is_vision = any(hasattr(settings, key) for key in ("image_size", "num_channels", "vision_config"))
    if kind == "sequence_classification" and is_vision and not hasattr(settings, "text_config"):
        raise ModelError(f"model.name: {name} is a vision encoder; {kind} needs a text encoder")
    if kind == "image_classification" and not is_vision:
        raise ModelError(f"model.name: {name} is no vision encoder; {kind} needs one")


def require_room(module: nn.Module, config: RunConfig) -> None:
    """Refuse texts that are longer than the model's table of positions."""
    if not isinstance(config.task, SequenceClassification):
        return
    for path, table in module.named_modules():
        if isinstance(table, nn.Embedding) and path.rpartition(".")[2] in _POSITION_TABLES:
            unused = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
            if config.task.max_length > (most := table.num_embeddings - unused):
                raise ModelError(
                    f"task.max_length is {config.task.max_length}; {config.model.name} takes at most {most} tokens"
                )


def _what_it_refuses(checkpoint: Checkpoint, config: RunConfig) -> str:
    if not isinstance(config.task, ImageClassification):
        return f"model.name: {checkpoint.name} does not work on plain texts"
    size, own = config.task.image_size, getattr(checkpoint.settings, "image_size", None)
    hint = f"; its own are of {own}" if isinstance(own, int) and own != size else ""
    return f"task.image_size: {checkpoint.name} does not take pictures of {size} x {size} pixels{hint}"
