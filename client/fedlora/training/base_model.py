"""The base model of a run: a transformers checkpoint with a classification head, and its preprocessing."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from fedlora.common.config import RunConfig, SequenceClassification
from fedlora.common.errors import ModelError
from fedlora.common.files import sha256_of
from fedlora.training import tasks
from fedlora.training.resources import resolve_path

HEAD = "classification_head"
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A model in float32 on the CPU, ready for PEFT.

    Attributes:
        module: its forward takes the task's batch and returns logits, or an output with `logits`.
        heads: module paths that start untrained: they are trained, sent and averaged whole.
        task: how examples become its inputs, and how its outputs are judged.
        peft_task_type: PEFT's task type, None for our own head.
        fingerprint: equal for equal weights: the sha256 of the weight files, or the hub's commit.
    """

    module: nn.Module
    heads: tuple[str, ...]
    task: tasks.Task[Any]
    peft_task_type: str | None
    fingerprint: str


class PooledClassifier(nn.Module):
    """An encoder with a linear head on its pooled features.

    The encoder's parts are registered under their own names, so that an adapter's tensors have the
    names they would have on the plain encoder, which therefore takes the LoRA part too.
    """

    def __init__(self, encoder: nn.Module, *, num_labels: int, pooling: str) -> None:
        super().__init__()
        self.config = encoder.config
        for name, part in encoder.named_children():
            self.add_module(name, part)
        self.__dict__["_encoder"] = encoder
        self._pooling = pooling
        takes = inspect.signature(encoder.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        width = _feature_size(encoder.config) * (2 if pooling == "cls_mean" else 1)
        self.add_module(HEAD, nn.Linear(width, num_labels))

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return logits (batch_size, num_labels) for the encoder's own inputs."""
        options = self._options if "pixel_values" in inputs else {}
        hidden = self.__dict__["_encoder"](**inputs, **options).last_hidden_state
        head: nn.Module = getattr(self, HEAD)
        logits: Tensor = head(self._pool(hidden, inputs))
        return logits

    def _pool(self, hidden: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return features (batch_size, width) of hidden states (batch_size, tokens, hidden_size) or a feature map."""
        if hidden.ndim == 4:  # a convolutional encoder's (batch_size, channels, height, width)
            return hidden.flatten(2).mean(-1)
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
        else:
            mean = hidden[:, _num_prefix_tokens(hidden, inputs["pixel_values"], self.config) :].mean(1)
        if self._pooling == "mean":
            return mean
        return hidden[:, 0] if self._pooling == "cls" else torch.cat([hidden[:, 0], mean], dim=-1)


def load_base_model(config: RunConfig, labels: tuple[str, ...]) -> BaseModel:
    """Return the run's base model; what the checkpoint lacks is drawn from torch's global generator.

    Raises:
        ModelError: it is missing, unreadable, of the wrong kind, or its head has other labels.
    """
    # A worker has no terminal of its own; its errors are answers.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    source = resolve_path(config.model.name, error=ModelError)
    if isinstance(source, Path) and not (source / "config.json").is_file():
        raise ModelError(f"model.name: {source} holds no config.json; expected a folder that save_pretrained wrote")
    options: dict[str, Any] = {} if isinstance(source, Path) else {"revision": config.model.revision}
    name = str(source)
    try:
        settings = AutoConfig.from_pretrained(name, **options)
        task = _task(config, name, settings, options)
        if config.model.head == "auto":
            module, heads = _with_own_head(config, name, labels, options)
        else:
            module, heads = _with_linear_head(config, name, labels, options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"model.name: cannot load {config.model.name}: {reason[:300]}") from error
    peft_task_type = (
        "SEQ_CLS" if config.model.head == "auto" and config.task.kind == "sequence_classification" else None
    )
    return BaseModel(module, heads, task, peft_task_type, _fingerprint(source, settings))


def fingerprint_of(module: nn.Module) -> str:
    """Return the sha256 over a model's weights, for one that no file or hub names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _with_linear_head(
    config: RunConfig, name: str, labels: tuple[str, ...], options: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    model = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
    is_image = config.task.kind == "image_classification"
    encoder: nn.Module = getattr(model, "vision_model", model) if is_image else model
    if getattr(encoder.config, "is_encoder_decoder", False):
        encoder = model.get_encoder()
    pooling = config.model.pooling
    if pooling == "auto":
        pooling = "cls_mean" if is_image and _has_class_token(encoder) else "mean"
    elif is_image and "cls" in pooling and not _has_class_token(encoder):
        raise ModelError(f"model.pooling is {pooling!r}, but {config.model.name} has no class token; use mean or auto")
    return PooledClassifier(encoder, num_labels=len(labels), pooling=pooling), (HEAD,)


def _with_own_head(
    config: RunConfig, name: str, labels: tuple[str, ...], options: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]]:
    is_image = config.task.kind == "image_classification"
    family = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    model, loading = family.from_pretrained(
        name,
        dtype=torch.float32,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **options,
    )
    fresh = [
        *loading["missing_keys"],
        *(key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]),
    ]
    heads = {key.rpartition(".")[0] for key in fresh}
    heads |= {child for child, _ in model.named_children() if child in ("classifier", "score")}
    outermost = {head for head in heads if not any(head.startswith(f"{other}.") for other in heads)}
    if getattr(model.config, "pad_token_id", None) is None and not is_image:
        model.config.pad_token_id = model.config.eos_token_id
    return model, tuple(sorted(outermost))


def _task(config: RunConfig, name: str, settings: Any, options: Mapping[str, Any]) -> tasks.Task[Any]:
    is_vision = (
        hasattr(settings, "image_size") or hasattr(settings, "num_channels") or hasattr(settings, "vision_config")
    )
    if isinstance(config.task, SequenceClassification):
        if is_vision and not hasattr(settings, "text_config"):
            raise ModelError(
                f"model.name: {config.model.name} is a vision encoder; {config.task.kind} needs a text encoder"
            )
        return _text_task(config.task, name, options)
    if not is_vision:
        raise ModelError(f"model.name: {config.model.name} is no vision encoder; {config.task.kind} needs one")
    normal: Mapping[str, Any] = _IMAGENET
    preprocessing = Path(name) / "preprocessor_config.json"
    if preprocessing.is_file():
        normal = {**_IMAGENET, **json.loads(preprocessing.read_text())}
    elif not Path(name).is_dir():
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(name, **options)  # type: ignore[no-untyped-call]
        normal = {key: getattr(processor, key, None) or value for key, value in _IMAGENET.items()}
    return tasks.ImageClassification(mean=tuple(normal["image_mean"]), std=tuple(normal["image_std"]))


def _text_task(section: SequenceClassification, name: str, options: Mapping[str, Any]) -> tasks.Task[Any]:
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def tokenize(texts: list[str]) -> list[list[int]]:
        token_ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=section.max_length)["input_ids"]
        return token_ids

    return tasks.SequenceClassification(tokenize=tokenize, pad_token_id=pad_token_id or 0)


def _has_class_token(encoder: nn.Module) -> bool:
    return any(name.endswith(("cls_token", "class_embedding")) for name, _ in encoder.named_parameters())


def _num_prefix_tokens(hidden: Tensor, pixel_values: Tensor, settings: Any) -> int:
    """Return how many tokens (class, registers, distillation) stand before the patches; 0 where patches are merged."""
    patch = getattr(settings, "patch_size", None)
    if not isinstance(patch, int):
        return 0
    num_patches = (pixel_values.shape[-2] // patch) * (pixel_values.shape[-1] // patch)
    return max(0, hidden.shape[1] - num_patches)


def _feature_size(settings: Any) -> int:
    size = getattr(settings, "hidden_size", None)
    return int(size if size is not None else settings.hidden_sizes[-1])


def _fingerprint(source: Path | str, settings: Any) -> str:
    if isinstance(source, str):
        return f"{source}@{getattr(settings, '_commit_hash', None)}"
    weights = sorted(path for path in source.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf"))
    return f"sha256:{sha256_of([source / 'config.json', *weights])}"
