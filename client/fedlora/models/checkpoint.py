"""A transformers checkpoint: its folder, if need be fetched from the hub; its fingerprint; what its pictures expect."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars
from safetensors import SafetensorError
from transformers import AutoConfig

from fedlora.common.config import ModelSection
from fedlora.common.errors import ModelError, one_line
from fedlora.common.file_digests import remembered_sha256
from fedlora.common.parsing import json_in
from fedlora.common.resources import resolve_path
from fedlora.models.vocabulary import require_padding

# What transformers, safetensors and torch raise for files that are missing, damaged or of another model.
UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, ImportError, AttributeError, TypeError, SafetensorError)

# Without it, transformers may ask on the terminal whether to run a checkpoint's own code.
OPTIONS: Mapping[str, Any] = {"trust_remote_code": False}

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
HUB_TIMEOUT_SECONDS = 5.0
_SAFETENSORS = ("model.safetensors", "model-*-of-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    Attributes:
        name: as the run file has it, for errors.
        folder: what `from_pretrained` is given, with `OPTIONS`.
        settings: transformers' configuration of it.
    """

    name: str
    folder: Path
    settings: Any

    def fingerprint(self) -> str:
        """Return the sha256 of configuration and weight files, equal for equal weights wherever they came from."""
        for patterns in (_SAFETENSORS, _PICKLED):
            if weights := [path for pattern in patterns for path in sorted(self.folder.glob(pattern))]:
                break
        return f"sha256:{remembered_sha256([self.folder / 'config.json', *weights])}"

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation, by channel, that pictures were normalised with; else ImageNet's.

        Raises:
            ModelError: the file that says so is damaged.
        """
        for file in ("preprocessor_config.json", "processor_config.json"):
            content = _json(self.folder / file)
            content = content.get("image_processor", content)
            if content.get("do_normalize") is False:
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if content.get("image_mean") and content.get("image_std"):
                return tuple(content["image_mean"]), tuple(content["image_std"])
        return _IMAGENET_MEAN, _IMAGENET_STD


def find_checkpoint(section: ModelSection) -> Checkpoint:
    """Return the checkpoint that `section` names; one of the hub is fetched where it is not here yet.

    Raises:
        ModelError: there is none, neither here nor on the hub, or its configuration cannot be read.
    """
    # A worker has no terminal of its own; its errors are answers.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    found = resolve_path(section.name, error=ModelError)
    folder = found if isinstance(found, Path) else _from_the_hub(found, section.revision)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.name: {folder} holds no config.json; expected a folder that save_pretrained wrote")
    try:
        settings = AutoConfig.from_pretrained(str(folder), **OPTIONS)
    except UNREADABLE as error:
        raise ModelError(f"model.name: cannot load {section.name}: {one_line(error)}") from error
    require_padding(settings, section.name)
    return Checkpoint(section.name, folder, settings)


def require_hub_id(name: str) -> None:
    """Refuse the name of a model that is no folder here and cannot be one of the hub."""
    if not re.fullmatch(_HUB_ID, name, re.ASCII):
        raise ModelError(
            f"model.name: no folder {name} (looked in {Path.cwd()}); expected a folder, a hub id such as "
            "google/vit-base-patch16-224, or package:MODULE/FOLDER"
        )


def _from_the_hub(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model in this machine's cache, brought up to date where the hub can be reached."""
    require_hub_id(name)
    files = files_on_the_hub(name, revision)
    weights = _SAFETENSORS if any(file.endswith(".safetensors") for file in files) else _PICKLED
    disable_progress_bars()
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=[*SMALL_FILES, *weights], local_files_only=not files
            )
        )
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"model.name: no folder {name}; as a model of the hub it is not on this machine, and the hub cannot be "
            "reached; name a folder that exists, or download the model first"
        ) from error
    except OSError as error:
        raise ModelError(f"model.name: cannot download {name}: {one_line(error)}") from error


def files_on_the_hub(name: str, revision: str | None) -> list[str]:
    """Return the names of a hub model's files, none where the hub cannot be reached.

    transformers would try for half a minute to reach it, and tell the terminal so; this gives up after seconds.
    """
    try:
        siblings = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS).siblings or []
    except RevisionNotFoundError as error:
        raise ModelError(f"model.revision: {name} has no revision {revision} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.name: no folder {name}, and the hub shows no such model; look at the spelling, "
            "or set HF_TOKEN if it is private or needs its licence accepted"
        ) from error
    except Exception:
        # Refused, timed out, offline by the user's wish: each version of huggingface_hub has other names for these.
        return []
    return [file.rfilename for file in siblings]


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json_in(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ModelError(f"model.name: {path} is not JSON ({error})") from error
    return content
