"""What a run file says to pin the base model that lies on this machine."""

from pathlib import Path

from fedlora.common.config import CausalLm, RunConfig, SequenceClassification
from fedlora.common.errors import ModelError
from fedlora.common.resources import resolve_path
from fedlora.models.checkpoint import Checkpoint
from fedlora.models.model_loading import load_tokenizer, text_fingerprints


def local_checkpoint(config: RunConfig) -> Path | None:
    """Return the folder of the run's base model, or of its copy in the hub's cache with weights in it; None without.

    Raises:
        ModelError: its name is none.
    """
    found = resolve_path(config.model.name, error=ModelError)
    folder = found if isinstance(found, Path) else cached_folder(found, config.model.revision)
    return folder if folder is not None and (folder / "config.json").is_file() else None


def cached_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of a hub model in the cache, with weights in it; None where there is none."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    # No such model here, or no name of one: each version of huggingface_hub has other names for these.
    except Exception:
        return None
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
    return folder if has_weights else None


def pins_of(config: RunConfig, folder: Path) -> tuple[str, dict[str, str]]:
    """Return what `model.fingerprint` and `model.fingerprints` are to be for the base model in a folder.

    Raises:
        ModelError: it is a text model's, without a vocabulary.
    """
    base = Checkpoint(config.model.name, folder, None).fingerprint()
    if not isinstance(config.task, SequenceClassification | CausalLm):
        return base, {}
    tokenizer = load_tokenizer(folder, name=config.model.name)
    return base, text_fingerprints(tokenizer, getattr(config.task, "chat_template", None))


def pin_lines(config: RunConfig, folder: Path) -> tuple[list[str], bool]:
    """Return the lines of the run file's [model] that pin the base model in a folder, and whether it has others.

    Raises:
        ModelError: as `pins_of`.
    """
    base, others = pins_of(config, folder)
    table = ", ".join(f'{name} = "{value}"' for name, value in sorted(others.items()))
    lines = [f'fingerprint = "{base}"', *([f"fingerprints = {{ {table} }}"] if table else [])]
    pinned = {"": config.model.fingerprint or base, **config.model.fingerprints}
    found = {"": base, **others}
    return lines, any(found.get(name) != value for name, value in pinned.items())
