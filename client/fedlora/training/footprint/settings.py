"""A checkpoint's config.json, without its weights: from a folder, or the one file fetched from the hub."""

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers import AutoConfig

from fedlora.common.config import ModelSection
from fedlora.common.errors import ModelError, one_line
from fedlora.common.resources import resolve_path
from fedlora.models.checkpoint import (
    HUB_TIMEOUT_SECONDS,
    OPTIONS,
    SMALL_FILES,
    UNREADABLE,
    files_on_the_hub,
    require_hub_id,
)
from fedlora.models.model_loading import load_tokenizer
from fedlora.models.vocabulary import require_padding

_CONFIG = "config.json"


def read_settings(section: ModelSection) -> Any:
    """Return transformers' configuration of the model that `section` names; of the hub only config.json is fetched.

    Raises:
        ModelError: there is none, neither here nor on the hub, or it cannot be read.
    """
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    found = resolve_path(section.name, error=ModelError)
    path = found / _CONFIG if isinstance(found, Path) else _from_the_hub(found, section.revision)
    if not path.is_file():
        raise ModelError(f"model.name: {path.parent} holds no {_CONFIG}; expected a folder that save_pretrained wrote")
    try:
        settings = AutoConfig.from_pretrained(str(path.parent), **OPTIONS)
    except UNREADABLE as error:
        raise ModelError(f"model.name: cannot load {section.name}: {one_line(error)}") from error
    require_padding(settings, section.name)
    return settings


def read_tokenizer(section: ModelSection) -> Any:
    """Return the tokenizer of the model that `section` names, None where it is not at hand."""
    found = resolve_path(section.name, error=ModelError)
    try:
        folder = found if isinstance(found, Path) else _small_files(found, section.revision)
        return load_tokenizer(folder, name=section.name)
    except (ModelError, *UNREADABLE):
        return None


def _small_files(name: str, revision: str | None) -> Path:
    disable_progress_bars()
    is_reachable = bool(files_on_the_hub(name, revision))
    return Path(
        snapshot_download(name, revision=revision, allow_patterns=[*SMALL_FILES], local_files_only=not is_reachable)
    )


def _from_the_hub(name: str, revision: str | None) -> Path:
    require_hub_id(name)
    is_reachable = bool(files_on_the_hub(name, revision))
    try:
        return Path(
            hf_hub_download(
                name,
                _CONFIG,
                revision=revision,
                etag_timeout=HUB_TIMEOUT_SECONDS,
                local_files_only=not is_reachable,
            )
        )
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model.name: no folder {name}; its {_CONFIG} is not on this machine, and the hub cannot be reached; "
            "name a folder with that file"
        ) from error
    except EntryNotFoundError as error:
        raise ModelError(
            f"model.name: {name} on the hub has no {_CONFIG}; expected a transformers checkpoint"
        ) from error
    except OSError as error:
        raise ModelError(f"model.name: cannot read {_CONFIG} of {name}: {one_line(error)}") from error
