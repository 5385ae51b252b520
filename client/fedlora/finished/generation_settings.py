"""The generation_config.json of an exported language model: with it, `generate` ends where the model has learned to."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedlora.common.errors import ModelError
from fedlora.common.parsing import json_in
from fedlora.models.checkpoint import Checkpoint
from fedlora.training.tasks.end_of_turn import EndOfTurn

SETTINGS_FILE = "generation_config.json"


def save_generation_settings(checkpoint: Checkpoint, end: EndOfTurn, tokenizer: Any, folder: Path) -> None:
    """Write the base model's settings with what ends an answer; other tokens that end one stay.

    Raises:
        ModelError: the base model's settings are unreadable.
    """
    # A merged model has been saved with some already.
    found = [place / SETTINGS_FILE for place in (folder, checkpoint.folder) if (place / SETTINGS_FILE).is_file()]
    settings = _read(found[0]) if found else {}
    known = settings.get("eos_token_id", getattr(checkpoint.settings, "eos_token_id", None))
    ends = list(dict.fromkeys([*end.token_ids, *_listed(known)]))
    if ends:
        settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    pads = (settings.get("pad_token_id"), tokenizer.pad_token_id, tokenizer.eos_token_id, *ends)
    if (pad := next((token_id for token_id in pads if token_id is not None), None)) is not None:
        settings["pad_token_id"] = pad
    begins = (settings.get("bos_token_id"), tokenizer.bos_token_id)
    if (begin := next((token_id for token_id in begins if token_id is not None), None)) is not None:
        settings["bos_token_id"] = begin
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json_in(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is unreadable ({error}); restore it") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path} holds no settings; expected an object of JSON")
    return dict(content)


def _listed(ids: object) -> Iterable[int]:
    return [one for one in (ids if isinstance(ids, list) else [ids]) if isinstance(one, int)]
