"""What loading a base model has in common, whatever it is for: files, types, quantisation, tokenizer, fingerprints."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, BitsAndBytesConfig

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.models.bitsandbytes_door import use_bitsandbytes
from fedlora.models.checkpoint import OPTIONS, Checkpoint
from fedlora.models.devices import ALL_GPUS
from fedlora.models.kept_modules import kept_or_read
from fedlora.training import tasks


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A model on the CPU, ready for PEFT; a quantised one is where it will stay.

    Attributes:
        module: its forward takes the task's batch and returns logits, or an output with `logits`.
        heads: module paths that start untrained: they are trained, sent and averaged whole.
        task: how examples become its inputs, and how its outputs are judged.
        peft_task_type: PEFT's task type, None for our own head.
        fingerprint: equal for equal weights: the sha256 over the checkpoint's configuration and weights.
        tokenizer: transformers' own, None for pictures.
        fingerprints: of what else all sites must share, by name.
        unreached: paths of linear layers and names of parameters that have no part in the logits.
    """

    module: nn.Module
    heads: tuple[str, ...]
    task: tasks.Task[Any]
    peft_task_type: str | None
    fingerprint: str
    tokenizer: Any = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    unreached: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Loading:
    """The tensors that the weight files lack, and those that they have in another size."""

    missing: frozenset[str]
    mismatched: frozenset[str]


def load_module(family: Any, checkpoint: Checkpoint, config: RunConfig, **settings: Any) -> tuple[Any, Loading]:
    """Return the checkpoint as a model of an AutoModel `family`, and what its files lack.

    It is on the CPU, unless it is quantised or is to be spread over all GPUs.

    Raises:
        ModelError: it is to be quantised, and cannot be here.
    """
    section = config.model
    if section.quantization != "none":
        settings |= _quantised(section.quantization)
    elif getattr(checkpoint.settings, "quantization_config", None) is not None:
        use_bitsandbytes(why=f"model.name: {checkpoint.name}, a quantised checkpoint,")
    if config.train.device == ALL_GPUS and torch.cuda.is_available():
        settings["device_map"] = "balanced"

    def read() -> tuple[Any, Loading]:
        model, info = family.from_pretrained(
            str(checkpoint.folder),
            dtype=getattr(torch, section.dtype),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **settings,
            **OPTIONS,
        )
        mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        return model, Loading(frozenset(info["missing_keys"]), frozenset(mismatched))

    if "device_map" in settings or getattr(checkpoint.settings, "quantization_config", None) is not None:
        return read()  # It is where it will stay, and there a second one may be too much.
    return kept_or_read(f"{family.__name__} {section.dtype} {checkpoint.fingerprint()} {settings}", read)


def load_tokenizer(source: Path | str, *, name: str, revision: str | None = None) -> Any:
    """Return the tokenizer in a checkpoint's folder, or that of a hub model, whose weights stay where they are.

    Args:
        source: the folder, or the hub's id.
        name: as the run file has it, for errors.
        revision: of a hub model.

    Raises:
        ModelError: it has none.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(source), revision=revision, **OPTIONS)
    # Of a folder with a configuration alone, transformers makes a tokenizer that knows nothing.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"model.name: {name} holds no vocabulary; save the model's tokenizer with it")
    return tokenizer


def text_fingerprints(tokenizer: Any, chat_template: str | None = None) -> dict[str, str]:
    """Return the sha256 of how texts become tokens: of the tokenizer, of its added tokens, of the chat template."""
    added = sorted((index, str(token)) for index, token in tokenizer.added_tokens_decoder.items())
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        rules = {key: content[key] for key in sorted(content.keys() - {"added_tokens", "truncation", "padding"})}
    else:
        rules = dict(sorted(tokenizer.get_vocab().items()))
    template = chat_template or getattr(tokenizer, "chat_template", None) or ""
    return {
        "tokenizer": _digest(json.dumps(rules, sort_keys=True)),
        "added_tokens": _digest(json.dumps(added)),
        "chat_template": _digest(template if isinstance(template, str) else json.dumps(template, sort_keys=True)),
    }


def fingerprint_of(module: nn.Module) -> str:
    """Return the sha256 over a model's weights, for one that no file or hub names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def require_weights(checkpoint: Checkpoint, loading: Loading, names: Sequence[str], *, whole: Sequence[str]) -> None:
    """Refuse weights that the files lack, in whose place transformers puts random ones without a word.

    Args:
        names: the parameters that the run uses.
        whole: paths of modules, or ends of such paths, that are trained whole and may start anywhere.
    """
    absent = sorted((loading.missing | loading.mismatched).intersection(names))
    if 2 * len(absent) > len(names):
        raise ModelError(
            f"model.name: {checkpoint.name} holds weights of another model than its config.json says: "
            f"{len(absent)} of {len(names)} tensors are missing or of another size, such as {absent[0]}"
        )
    for name in absent:
        module = f".{name.rpartition('.')[0]}."
        if any(f".{path}." in module for path in whole):
            continue
        if name in loading.mismatched:
            raise ModelError(f"model.name: {checkpoint.name} has {name} of another size than its config.json says")
        raise ModelError(
            f"model.name: {checkpoint.name} holds no {name}, which would start with random numbers and stay so; "
            f"complete the files, or train that module whole: lora.modules_to_save = "
            f'["{name.rpartition(".")[0].rpartition(".")[2]}"]'
        )


def _quantised(quantization: str) -> dict[str, Any]:
    """Return what from_pretrained needs for frozen weights of 4 or 8 bits, which it puts where they will stay."""
    if not use_bitsandbytes(why=f"model.quantization = {quantization!r}"):
        raise ModelError(
            f"model.quantization = {quantization!r} needs bitsandbytes: pip install 'fedlora[quantized]' on a machine "
            'with a CUDA GPU; or set it to "none"'
        )
    if not torch.cuda.is_available() and torch.backends.mps.is_available():
        raise ModelError(
            f"model.quantization = {quantization!r} needs a CUDA GPU, and torch finds none here; set it to "
            '"none", and model.dtype = "bfloat16" to halve the weights'
        )
    if quantization == "8bit":
        chosen = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    else:
        chosen = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return {
        "quantization_config": chosen,
        "device_map": {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"},
    }


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
