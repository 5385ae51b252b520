"""A transformers checkpoint, in a folder or on the hub: where it is, how to load it, what its pictures expect."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils.hub import cached_file

from fedlora.common.config import ModelSection
from fedlora.common.errors import ModelError
from fedlora.common.files import sha256_of
from fedlora.training.resources import resolve_path

# What transformers, safetensors and torch raise for files that are missing, damaged or of another model.
UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, ImportError, AttributeError, TypeError, SafetensorError)

_HUB_ID = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
_HUB_TIMEOUT_SECONDS = 5.0
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
        name: as the run file has it, for errors.
        source: its folder, or its id on the hub.
        options: what every `from_pretrained` is given, so that all read the same revision.
        settings: transformers' configuration of it.
    """

    name: str
    source: Path | str
    options: Mapping[str, Any]
    settings: Any

    def fingerprint(self) -> str:
        """Return what is equal for equal weights: the sha256 of configuration and weight files, or the hub's commit."""
        if isinstance(self.source, str):
            return f"{self.source}@{getattr(self.settings, '_commit_hash', None)}"
        weights = sorted(path for path in self.source.iterdir() if path.suffix in (".safetensors", ".bin"))
        return f"sha256:{sha256_of([self.source / 'config.json', *weights])}"

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation, by channel, that pictures were normalised with; else ImageNet's.

        Raises:
            ModelError: the file that says so is damaged.
        """
        for file in ("preprocessor_config.json", "processor_config.json"):
            content = self._json(file)
            content = content.get("image_processor", content)
            if content.get("do_normalize") is False:
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if content.get("image_mean") and content.get("image_std"):
                return tuple(content["image_mean"]), tuple(content["image_std"])
        return _IMAGENET_MEAN, _IMAGENET_STD

    def _json(self, file: str) -> dict[str, Any]:
        path = cached_file(
            str(self.source),
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **{key: value for key, value in self.options.items() if key != "trust_remote_code"},
        )
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text()) if path else {}
        except ValueError as error:
            raise ModelError(f"model.name: {path} is not JSON ({error})") from error
        return content


def find_checkpoint(section: ModelSection) -> Checkpoint:
    """Return the checkpoint that `section` names.

    Raises:
        ModelError: there is none, neither here nor on the hub, or its configuration cannot be read.
    """
    # A worker has no terminal of its own; its errors are answers.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    source = resolve_path(section.name, error=ModelError)
    # Without it, transformers may ask on the terminal whether to run a checkpoint's own code.
    options: dict[str, Any] = {"trust_remote_code": False}
    if isinstance(source, str):
        options |= _hub_options(source, section.revision)
    elif not (source / "config.json").is_file():
        raise ModelError(f"model.name: {source} holds no config.json; expected a folder that save_pretrained wrote")
    try:
        settings = AutoConfig.from_pretrained(str(source), **options)
    except UNREADABLE as error:
        if options.get("local_files_only"):
            raise ModelError(
                f"model.name: no folder {source}; as a model of the hub it is not on this machine, and the hub "
                "cannot be reached; name a folder that exists, or download the model first"
            ) from error
        raise ModelError(f"model.name: cannot load {section.name}: {one_line(error)}") from error
    return Checkpoint(section.name, source, options, settings)


def one_line(error: Exception) -> str:
    """Return what `error` says, in one line that is not too long."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _hub_options(name: str, revision: str | None) -> dict[str, Any]:
    """Return how to load a hub model: at one commit, or, where the hub cannot be reached, from this machine's cache.

    transformers on its own would try for half a minute to reach the hub, and tell the terminal so.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if not re.fullmatch(_HUB_ID, name, re.ASCII):
        raise ModelError(
            f"model.name: no folder {name} (looked in {Path.cwd()}); expected a folder, a hub id such as "
            "google/vit-base-patch16-224, or package:MODULE/FOLDER"
        )
    try:
        commit = HfApi().model_info(name, revision=revision, timeout=_HUB_TIMEOUT_SECONDS).sha
    except RevisionNotFoundError as error:
        raise ModelError(f"model.revision: {name} has no revision {revision} on the hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.name: no folder {name}, and the hub shows no such model; look at the spelling, "
            "or set HF_TOKEN if it is private or needs its licence accepted"
        ) from error
    except Exception:
        # Refused, timed out, offline by the user's wish: each version of huggingface_hub has other names for these.
        return {"revision": revision, "local_files_only": True}
    return {"revision": commit}
