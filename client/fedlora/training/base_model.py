"""The base model of a run: a transformers checkpoint with a classification head, and its preprocessing."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from fedlora.common.config import ImageClassification, RunConfig, SequenceClassification
from fedlora.common.errors import ModelError
from fedlora.training import tasks
from fedlora.training.checkpoint import OPTIONS, UNREADABLE, Checkpoint, find_checkpoint, one_line
from fedlora.training.pooled_classifier import HEAD, PooledClassifier

_OWN_HEADS = ("classifier", "pre_classifier", "score")
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A model in float32 on the CPU, ready for PEFT.

    Attributes:
        module: its forward takes the task's batch and returns logits, or an output with `logits`.
        heads: module paths that start untrained: they are trained, sent and averaged whole.
        task: how examples become its inputs, and how its outputs are judged.
        peft_task_type: PEFT's task type, None for our own head.
        fingerprint: equal for equal weights: the sha256 over the checkpoint's configuration and weights.
    """

    module: nn.Module
    heads: tuple[str, ...]
    task: tasks.Task[Any]
    peft_task_type: str | None
    fingerprint: str


@dataclass(frozen=True)
class _Loading:
    """The tensors that the weight files lack, and those that they have in another size."""

    missing: frozenset[str]
    mismatched: frozenset[str]


def load_base_model(config: RunConfig, labels: tuple[str, ...]) -> BaseModel:
    """Return the run's base model; what the checkpoint lacks is drawn from torch's global generator.

    Raises:
        ModelError: it is missing, unreadable, of the wrong kind, or does not take the run's pictures or texts.
    """
    checkpoint = find_checkpoint(config.model)
    _require_kind(checkpoint, config)
    is_text, has_own_head = isinstance(config.task, SequenceClassification), config.model.head == "auto"
    heads: tuple[str, ...] = (HEAD,)
    try:
        task, example, pad_token_id = _task(checkpoint, config)
        if has_own_head:
            module, heads = _with_own_head(checkpoint, labels, pad_token_id=pad_token_id)
        else:
            module = _encoder(checkpoint, is_text=is_text)
    except UNREADABLE as error:
        raise ModelError(f"model.name: cannot load {checkpoint.name}: {one_line(error)}") from error
    try:
        if has_own_head:
            with torch.no_grad():
                module.eval()(**example)
        else:
            module = PooledClassifier(module, example, num_labels=len(labels), pooling=config.model.pooling)
    except UNREADABLE as error:
        raise ModelError(f"{_what_it_refuses(checkpoint, config)} ({one_line(error)})") from error
    _require_room(module, config)
    peft_task_type = "SEQ_CLS" if is_text and has_own_head else None
    return BaseModel(module, heads, task, peft_task_type, checkpoint.fingerprint())


def fingerprint_of(module: nn.Module) -> str:
    """Return the sha256 over a model's weights, for one that no file or hub names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _encoder(checkpoint: Checkpoint, *, is_text: bool) -> nn.Module:
    """Return the encoder of pictures or texts, which may be one part of the checkpoint."""
    model, loading = _load(AutoModel, checkpoint)
    encoder: Any = getattr(model, "text_model" if is_text else "vision_model", model)
    saved_as = getattr(encoder.config, "architectures", None) or ()
    if getattr(encoder.config, "is_encoder_decoder", False) or any(name.endswith("EncoderModel") for name in saved_as):
        encoder = model.get_encoder()
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.pooler = None  # we pool ourselves, and LoRA in it would never be trained
    if hasattr(encoder.config, "mask_ratio"):
        encoder.config.mask_ratio = 0.0  # a masked autoencoder would go on hiding most of each picture
    own = {id(parameter) for parameter in encoder.parameters()}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in own]
    _require_weights(checkpoint, loading, names, heads=())
    return cast(nn.Module, encoder)


def _with_own_head(
    checkpoint: Checkpoint, labels: tuple[str, ...], *, pad_token_id: int | None
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
    model, loading = _load(
        family, checkpoint, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id=numbers
    )
    if pad_token_id is not None:
        # By it a decoder finds the last token of a text, so it has to be what the task pads with.
        model.config.pad_token_id = pad_token_id
    names = [name for name, _ in model.named_parameters()]
    fresh = {*loading.missing, *loading.mismatched}
    heads = {child for child, _ in model.named_children() if child in _OWN_HEADS}
    for path in {key.rpartition(".")[0] for key in fresh} - {""}:
        if all(name in fresh for name in names if name.startswith(f"{path}.")):
            heads.add(path)
    outermost = sorted(head for head in heads if not any(head.startswith(f"{other}.") for other in heads))
    _require_weights(checkpoint, loading, names, outermost)
    return model, tuple(outermost)


def _load(family: Any, checkpoint: Checkpoint, **settings: Any) -> tuple[Any, _Loading]:
    model, info = family.from_pretrained(
        str(checkpoint.folder),
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **settings,
        **OPTIONS,
    )
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    return model, _Loading(frozenset(info["missing_keys"]), frozenset(mismatched))


def _task(checkpoint: Checkpoint, config: RunConfig) -> tuple[tasks.Task[Any], dict[str, Tensor], int | None]:
    """Return the run's task, the model's inputs for one example, and what texts are padded with."""
    if not isinstance(config.task, SequenceClassification):
        mean, std = checkpoint.normalisation()
        size = config.task.image_size
        return tasks.ImageClassification(mean=mean, std=std), {"pixel_values": torch.zeros(1, 3, size, size)}, None
    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.folder), **OPTIONS)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"model.name: {checkpoint.name} holds no vocabulary; save the model's tokenizer with it")
    max_length = config.task.max_length

    def tokenize(texts: list[str]) -> list[list[int]]:
        token_ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        return token_ids

    pad_token_id = _pad_token_id(tokenizer, checkpoint.settings)
    input_ids = torch.tensor(tokenize(["an example"]))
    example = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return tasks.SequenceClassification(tokenize=tokenize, pad_token_id=pad_token_id), example, pad_token_id


def _pad_token_id(tokenizer: Any, settings: Any) -> int:
    """Return the id to pad texts with; it is masked out, so that any will do that the model has an embedding for."""
    num_embeddings = getattr(settings, "vocab_size", None) or len(tokenizer)
    for found in (tokenizer.pad_token_id, getattr(settings, "pad_token_id", None), tokenizer.eos_token_id):
        if isinstance(found, int) and 0 <= found < num_embeddings:
            return found
    return 0


def _require_kind(checkpoint: Checkpoint, config: RunConfig) -> None:
    settings, kind = checkpoint.settings, config.task.kind
    is_vision = any(hasattr(settings, name) for name in ("image_size", "num_channels", "vision_config"))
    if kind == "sequence_classification" and is_vision and not hasattr(settings, "text_config"):
        raise ModelError(f"model.name: {checkpoint.name} is a vision encoder; {kind} needs a text encoder")
    if kind == "image_classification" and not is_vision:
        raise ModelError(f"model.name: {checkpoint.name} is no vision encoder; {kind} needs one")


def _require_weights(checkpoint: Checkpoint, loading: _Loading, names: Sequence[str], heads: Sequence[str]) -> None:
    """Refuse weight files of another model, in whose place transformers puts random weights without a word."""
    absent = sorted((loading.missing | loading.mismatched).intersection(names))
    if 2 * len(absent) > len(names):
        raise ModelError(
            f"model.name: {checkpoint.name} holds weights of another model than its config.json says: "
            f"{len(absent)} of {len(names)} tensors are missing or of another size, such as {absent[0]}"
        )
    for name in sorted(loading.mismatched.intersection(names)):
        if not name.startswith(tuple(f"{head}." for head in heads)):
            raise ModelError(f"model.name: {checkpoint.name} has {name} of another size than its config.json says")


def _require_room(module: nn.Module, config: RunConfig) -> None:
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
