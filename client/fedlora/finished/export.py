"""A finished run's model in a folder of its own, for who loads it without fedlora: PEFT, transformers, vLLM, the hub.

    README.md                                         the model card
    adapter_config.json, adapter_model.safetensors    PEFT's; or, merged:
    config.json, model*.safetensors                   transformers'
    head.safetensors                                  of our own head on pooled features
    tokenizer.json, chat_template.jinja ...           of texts
    generation_config.json                            of a language model: what ends an answer
    preprocessor_config.json                          of pictures

The folder is written under another name and renamed: it is whole or absent.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fedlora.adapters.peft_format import CONFIG_FILE, TENSOR_FILE
from fedlora.common.config import ImageClassification, RunConfig
from fedlora.common.errors import ConfigError, ModelError, StoreError, one_line
from fedlora.common.files import require_free
from fedlora.common.parsing import json_in
from fedlora.common.published import move_folder
from fedlora.common.resources import PACKAGE_PREFIX, resolve_path
from fedlora.finished.finished_run import FinishedRun
from fedlora.finished.generation_settings import save_generation_settings
from fedlora.finished.loading_lines import Loading, OwnHead, loading_lines
from fedlora.finished.merging import (
    MergeCheck,
    base_in_float32,
    place_of,
    sample_inputs,
    save_head,
    save_merged,
)
from fedlora.finished.model_card import Card, History, write_card
from fedlora.models.checkpoint import OPTIONS, UNREADABLE, Checkpoint, find_checkpoint
from fedlora.models.pooled_classifier import HEAD, PooledClassifier
from fedlora.training.peft_bridge import with_saved_adapter
from fedlora.training.tasks.end_of_turn import EndOfTurn, end_of_chats

_UNFINISHED = ".unfinished"
_BILINEAR = 2  # Pillow's number for it


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        base_model: what the adapter names as its base: a hub's id, or the folder that the run's model lies in.
        is_on_hub: whether it is an id.
        check: of a merged model, how it compares with the adapter on its base.
        size_bytes: of all files.
    """

    folder: Path
    base_model: str
    is_on_hub: bool
    check: MergeCheck | None
    size_bytes: int


def export_run(run: FinishedRun, out: Path, history: History, *, merge: bool) -> Exported:
    """Write the run's adapter to `out` as a folder for PEFT, or with `merge` the whole model for transformers.

    Args:
        out: a new or an empty folder.
        history: for the model card.

    Raises:
        ConfigError: the run's base weights are quantised, and nothing can be merged into them.
        FedloraError: `out` is taken or cannot be written, the base model cannot be loaded, or the merged model does
            not act like the adapter on its base. Nothing is written.
    """
    require_free(out)
    if merge and run.config.model.quantization != "none":
        raise ConfigError(
            f'model.quantization is "{run.config.model.quantization}": an adapter cannot be merged into quantised '
            f'weights; set it to "none" in {run.folder}/run.toml to merge into the full weights, or export without '
            "--merge"
        )
    checkpoint = find_checkpoint(run.config.model)
    run.require(checkpoint.fingerprint())
    tokenizer = _tokenizer(checkpoint, run.config)
    name = run.config.model.name
    location = resolve_path(name, error=ModelError)
    base_model = str(location.resolve()) if isinstance(location, Path) else location
    is_on_hub = not isinstance(location, Path)
    with _whole_or_absent(out) as folder:
        check = save_merged(run, checkpoint, tokenizer, folder) if merge else None
        if not merge:
            _copy_adapter(run, base_model, folder)
        own_head = _own_head(run, checkpoint, tokenizer, folder)
        _save_preprocessing(checkpoint, run.config, tokenizer, folder)
        end = _save_end(checkpoint, run.config, tokenizer, folder)
        card = Card(
            # A path of this machine tells others nothing.
            base_model=name if is_on_hub or name.startswith(PACKAGE_PREFIX) else Path(base_model).name,
            is_on_hub=is_on_hub,
            is_merged=merge,
            task=run.config.task.kind,
            lora=f"rank {run.config.lora.rank}, alpha {run.config.lora.alpha:g}",
            loading=loading_lines(
                Loading(
                    kind=run.config.task.kind,
                    base_model=base_model,
                    revision=run.config.model.revision,
                    dtype=run.config.model.dtype,
                    is_merged=merge,
                    num_labels=len(run.labels),
                    own_head=own_head,
                    has_template=bool(getattr(tokenizer, "chat_template", None)),
                )
            ),
            notes=(
                *_end_notes(run.config, end, tokenizer),
                *_notes(run, base_model, is_on_hub=is_on_hub, check=check, tokenizer=tokenizer),
            ),
        )
        write_card(card, history, folder)
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Exported(out, base_model, is_on_hub, check, size_bytes)


@contextmanager
def _whole_or_absent(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its name when the block ends well, and is gone otherwise."""
    out = Path(os.path.abspath(out))
    folder = out.with_name(f".{out.name}{_UNFINISHED}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        for path in folder.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        move_folder(folder, out)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"cannot write {out}: {error.strerror or error}; free some space or choose another folder with --out"
        ) from error


def _copy_adapter(run: FinishedRun, base_model: str, folder: Path) -> None:
    """Copy the PEFT folder, with a name of the base model by which PEFT finds it from anywhere on this machine."""
    shutil.copyfile(run.adapter_folder / TENSOR_FILE, folder / TENSOR_FILE)
    try:
        config = json_in((run.adapter_folder / CONFIG_FILE).read_bytes())
    except ValueError as error:
        raise StoreError(f"{run.adapter_folder / CONFIG_FILE} is damaged ({error}); restore it") from error
    config |= {"base_model_name_or_path": base_model, "revision": run.config.model.revision}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _own_head(run: FinishedRun, checkpoint: Checkpoint, tokenizer: Any, folder: Path) -> OwnHead | None:
    """Write our own head, and return how it is used with the encoder; None where the model has one of transformers'."""
    if run.config.model.head != "linear" or not run.config.task.kind.endswith("_classification"):
        return None
    base = base_in_float32(run)
    pooled = base.module
    if not isinstance(pooled, PooledClassifier):
        return None
    example = sample_inputs(run.config, base, tokenizer)[0]
    own_head = OwnHead(place_of(pooled.plain_encoder, checkpoint), pooled.recipe(example))
    model = with_saved_adapter(pooled, run.adapter_folder)
    trained = getattr(model.get_base_model(), HEAD)
    save_head(getattr(trained, "modules_to_save", {"default": trained})["default"], folder)
    return own_head


def _tokenizer(checkpoint: Checkpoint, config: RunConfig) -> Any:
    """Return the tokenizer of a run over texts, with the run's chat template; None where there is none."""
    if isinstance(config.task, ImageClassification):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint.folder), **OPTIONS)
    except UNREADABLE as error:
        if config.task.kind == "own":
            return None
        raise ModelError(f"model.name: {checkpoint.name} has no tokenizer ({one_line(error)})") from error
    if template := getattr(config.task, "chat_template", None):
        tokenizer.chat_template = template
    return tokenizer


def _save_preprocessing(checkpoint: Checkpoint, config: RunConfig, tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer, or of pictures what the run did with them: resized to a square, normalised."""
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    if not isinstance(config.task, ImageClassification):
        return
    mean, std = checkpoint.normalisation()
    size = config.task.image_size
    content = {
        "image_processor_type": "ViTImageProcessor",  # the plain one, of whatever model
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n")


def _save_end(checkpoint: Checkpoint, config: RunConfig, tokenizer: Any, folder: Path) -> EndOfTurn | None:
    """Write what a language model has learned to end an answer with where `generate` looks for it, and return it."""
    if config.task.kind != "causal_lm":
        return None
    end = end_of_chats(tokenizer)
    save_generation_settings(checkpoint, end, tokenizer, folder)
    return end


def _end_notes(config: RunConfig, end: EndOfTurn | None, tokenizer: Any) -> Iterator[str]:
    """Yield what ends an answer, and how what is asked has to be put."""
    if end is None:
        return
    tokens = " or ".join(f"`{tokenizer.convert_ids_to_tokens(token_id)}` ({token_id})" for token_id in end.token_ids)
    if tokens:
        behind = f", behind the text `{end.text}`" if end.text else ""
        yield f"An answer ends with {tokens}{behind}; `generation_config.json` says so too."
    if getattr(config.task, "system", "") == "merge":
        yield "A system text was put before the next user's text, an empty line between; give it so, not as a turn."


def _notes(
    run: FinishedRun, base_model: str, *, is_on_hub: bool, check: MergeCheck | None, tokenizer: Any
) -> Iterator[str]:
    """Yield what whoever loads the folder should know."""
    if run.labels:
        yield f"The logits are, in this order, of: {', '.join(run.labels)}."
    if isinstance(run.config.task, ImageClassification) and run.config.task.pixel_range != "auto":
        black, white = run.config.task.pixel_range
        yield (
            f"Pictures deeper than 8 bits were brought to 8 bits in training, with {black:.10g} as black and "
            f"{white:.10g} as white; do so before the image processor, which takes 8 bits."
        )
    if run.config.task.kind == "causal_lm" and not getattr(tokenizer, "chat_template", None):
        yield (
            "The tokenizer has no chat template. Instructions were learned in Alpaca's form: `### Instruction:`, a new "
            "line, the instruction, an empty line, `### Response:`, a new line; prompts with completions as they are."
        )
    if check is not None:
        yield (
            f"Merged in float32 and saved in {check.dtype}: over {check.num_inputs} inputs the logits differ by at "
            f"most {check.saved:.2g} from those of the adapter on its base, in a range of {check.logits_range:.3g}."
        )
        return
    if run.config.model.quantization != "none":
        yield (
            f"The base weights were quantised to {run.config.model.quantization} in training; load them so to have "
            "exactly the model that was judged."
        )
    if not is_on_hub:
        yield (
            f"The base model is a folder of the machine that exported this, `{base_model}`. Elsewhere, give its own "
            "folder in that place, and in `base_model_name_or_path` of `adapter_config.json`."
        )
