"""An adapter worked into its base model, and the check that what was saved acts like the two together."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError, one_line
from fedlora.finished.finished_run import FinishedRun
from fedlora.models.base_model import BaseModel, load_base_model
from fedlora.models.checkpoint import OPTIONS, UNREADABLE, Checkpoint
from fedlora.models.pooled_classifier import HEAD, PooledClassifier
from fedlora.models.reach import logits_of
from fedlora.training.data.in_memory import unlabelled
from fedlora.training.peft_bridge import with_saved_adapter

HEAD_FILE = "head.safetensors"

# Of the range of the logits. Merging in float32 rounds the last bits; a weight of bfloat16 keeps 8 bits, 0.4 %.
TOLERANCES = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}

_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France? Answer in one word.",
    "Summarise: the committee met on Tuesday, and put the decision off until the spring.",
    "def mean(values):\n    return sum(values) / len(values)",
)
_NUM_PICTURES = 4

Inputs = Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class MergeCheck:
    """How far the merged model's logits are from those of the adapter on its base model, at most.

    Attributes:
        merged: of the merge itself, in float32.
        saved: of the weights that were saved, read back from disk; they are of `dtype`.
        logits_range: the largest logit less the smallest, for scale.
        num_inputs: texts or pictures.
    """

    merged: float
    saved: float
    dtype: str
    logits_range: float
    num_inputs: int

    @property
    def tolerance(self) -> float:
        """The largest difference that is taken for rounding."""
        return TOLERANCES[self.dtype] * self.logits_range


def base_in_float32(run: FinishedRun) -> BaseModel:
    """Return a run's base model in float32 on the CPU; its weights are rounded as the run had them.

    Raises:
        ModelError: it cannot be loaded, or is another than the run's.
    """
    base = load_base_model(run.unquantised(), run.labels)
    run.require(base.fingerprint)
    base.module.float()
    return base


@torch.no_grad()
def save_merged(run: FinishedRun, checkpoint: Checkpoint, tokenizer: Any, folder: Path) -> MergeCheck:
    """Write the base model with the adapter worked into its weights, as transformers loads it.

    Our own head on pooled features is a file beside the encoder, for transformers knows no class for it.

    Raises:
        ModelError: what was saved acts otherwise than the adapter on its base model, or cannot be saved.
    """
    base = base_in_float32(run)
    dtype = run.config.model.dtype
    inputs = sample_inputs(run.config, base, tokenizer)
    model = with_saved_adapter(base.module, run.adapter_folder)
    expected = _logits(model, inputs)
    try:
        merged: nn.Module = model.merge_and_unload(safe_merge=True)
    except UNREADABLE as error:
        raise ModelError(f"{run.adapter_folder}: PEFT cannot merge this adapter ({one_line(error)})") from error
    by_merging = _difference(expected, _logits(merged, inputs))
    _refuse_difference(by_merging, expected, "float32")
    merged.to(getattr(torch, dtype))
    reload = _save(merged, checkpoint, run, inputs[0], folder)
    # One model at a time: of a large one, memory has no room for two.
    del base, model, merged
    altogether = _difference(expected, _logits(reload(), inputs))
    _refuse_difference(altogether, expected, dtype)
    return MergeCheck(by_merging, altogether, dtype, _range(expected), len(inputs))


def place_of(encoder: nn.Module, checkpoint: Checkpoint) -> str:
    """Return the path of the encoder in what transformers' AutoModel makes of the checkpoint; "" where it is that."""
    with torch.device("meta"):
        whole = AutoModel.from_config(copy.deepcopy(checkpoint.settings))  # type: ignore[no-untyped-call]
    parts: Iterator[tuple[str, nn.Module]] = whole.named_modules()
    return next(path for path, module in parts if type(module) is type(encoder))


def _save(
    merged: nn.Module, checkpoint: Checkpoint, run: FinishedRun, example: Mapping[str, Tensor], folder: Path
) -> Callable[[], nn.Module]:
    """Write a merged model, and return what reads it back, in float32."""
    if isinstance(merged, PooledClassifier):
        return _save_pooled(merged, checkpoint, run, example, folder)
    if not isinstance(merged, PreTrainedModel):
        raise ModelError(
            f"a {type(merged).__name__} is no model that transformers can save; export the adapter without --merge"
        )
    if hasattr(merged.config, "use_cache"):
        merged.config.use_cache = True  # switched off for training
    merged.save_pretrained(folder)
    family = type(merged)

    def reload() -> nn.Module:
        found: nn.Module = family.from_pretrained(str(folder), dtype=torch.float32, **OPTIONS)
        return found.eval()

    return reload


def _save_pooled(
    merged: PooledClassifier, checkpoint: Checkpoint, run: FinishedRun, example: Mapping[str, Tensor], folder: Path
) -> Callable[[], nn.Module]:
    """Write the whole checkpoint with the merged encoder in its place, and the head beside it."""
    head: nn.Linear = getattr(merged, HEAD)
    place = place_of(merged.plain_encoder, checkpoint)
    whole, loading = AutoModel.from_pretrained(
        str(checkpoint.folder), dtype=head.weight.dtype, output_loading_info=True, **OPTIONS
    )
    weights = {name: tensor for name, tensor in merged.state_dict().items() if not name.startswith(f"{HEAD}.")}
    whole.get_submodule(place).load_state_dict(weights, strict=False)
    whole.config.id2label = dict(enumerate(run.labels))
    whole.config.label2id = {label: index for index, label in enumerate(run.labels)}
    if hasattr(whole.config, "mask_ratio"):
        whole.config.mask_ratio = 0.0  # a masked autoencoder would go on hiding most of each picture
    # A pooler that the checkpoint has no weights for was drawn at random; nobody needs it.
    kept = {name: tensor for name, tensor in whole.state_dict().items() if name not in loading["missing_keys"]}
    whole.save_pretrained(folder, state_dict=kept)
    save_head(head, folder)

    def reload() -> nn.Module:
        encoder = AutoModel.from_pretrained(str(folder), dtype=torch.float32, **OPTIONS).get_submodule(place)
        pooling = run.config.model.pooling
        found = PooledClassifier(encoder, example, num_labels=len(run.labels), pooling=pooling)
        getattr(found, HEAD).load_state_dict(load_file(folder / HEAD_FILE))
        return found.eval()

    return reload


def save_head(head: nn.Linear, folder: Path) -> None:
    """Write the linear head: weight (num_labels, width) and bias (num_labels,)."""
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, folder / HEAD_FILE)


def sample_inputs(config: RunConfig, base: BaseModel, tokenizer: Any) -> Inputs:
    """Return what the model is tried on, one text or picture each, so that no padding is in the way."""
    if config.task.kind == "image_classification":
        size, random = config.task.image_size, np.random.default_rng(0)
        pictures = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(_NUM_PICTURES)]
        prepared = base.task.prepare(unlabelled(pictures, image_size=size))
        return [base.task.collate(prepared, np.array([place])).inputs for place in range(len(pictures))]
    if tokenizer is None:
        raise ModelError(
            f"{config.model.name} has no tokenizer to try the merged model with; export the adapter without --merge"
        )
    tried = [tokenizer(text, return_tensors="pt", truncation=True, max_length=32) for text in _TEXTS]
    return [{name: entry[name] for name in ("input_ids", "attention_mask")} for entry in tried]


def _logits(model: nn.Module | PeftModel, inputs: Inputs) -> list[Tensor]:
    return [logits_of(model(**entry)).float() for entry in inputs]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest absolute difference; nan where a logit is none."""
    return float(torch.stack([(one - other).abs().max() for one, other in zip(expected, found, strict=True)]).max())


def _range(logits: Sequence[Tensor]) -> float:
    return float(max(entry.max() for entry in logits) - min(entry.min() for entry in logits))


def _refuse_difference(difference: float, expected: Sequence[Tensor], dtype: str) -> None:
    allowed = TOLERANCES[dtype] * _range(expected)
    if not difference <= allowed:
        raise ModelError(
            f"the merged model in {dtype} is no copy: its logits differ by up to {difference:.3g} from those of the "
            f"adapter on the base model, expected at most {allowed:.3g} ({TOLERANCES[dtype]:g} of their range); "
            "nothing is written: export the adapter without --merge"
        )
