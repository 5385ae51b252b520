"""Whether a model has an embedding for every token of its tokenizer; from the loaded two, or from their files alone."""

from pathlib import Path
from typing import Any

from fedlora.common.config import CausalLm, RunConfig, SequenceClassification
from fedlora.common.errors import ModelError
from fedlora.common.parsing import json_in
from fedlora.common.resources import resolve_path


def require_embeddings(tokenizer: Any, embeddings: Any, name: str) -> None:
    """Refuse a tokenizer with tokens that the model has no embedding for; fewer tokens than embeddings are usual.

    Args:
        tokenizer: transformers' own.
        embeddings: the model's table, None where it has none.
        name: the model's, for errors.
    """
    num_embeddings = getattr(embeddings, "num_embeddings", None)
    if isinstance(num_embeddings, int):
        _require(max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1)), num_embeddings, name)


def require_embeddings_by_files(config: RunConfig) -> None:
    """Refuse a run's model in a folder whose tokenizer.json has more tokens than config.json has embeddings.

    It takes milliseconds and no torch. What cannot be told from these files is left to whoever loads the model.

    Raises:
        ModelError: there are tokens without an embedding, or padding has none.
    """
    folder = resolve_path(config.model.name, error=ModelError)
    if not isinstance(folder, Path) or not isinstance(config.task, CausalLm | SequenceClassification):
        return
    settings, content = _json(folder / "config.json"), _json(folder / "tokenizer.json")
    text = settings.get("text_config")
    num_embeddings = (text if isinstance(text, dict) else settings).get("vocab_size")
    if isinstance(num_embeddings, int) and num_embeddings > 0 and (highest := _highest_token(content)) is not None:
        _require(highest + 1, num_embeddings, config.model.name)


def require_padding(settings: Any, name: str) -> None:
    """Refuse a configuration whose padding token is none of its tokens, for which torch would not make a table."""
    text = text_settings(settings)
    padding, num_embeddings = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(padding, int) and isinstance(num_embeddings, int) and padding >= num_embeddings:
        raise ModelError(
            f"model.name: the config.json of {name} has pad_token_id = {padding}, and vocab_size = {num_embeddings}; "
            f"expected a token below {num_embeddings}: correct pad_token_id there"
        )


def text_settings(settings: Any) -> Any:
    """Return the part of transformers' configuration that is about texts, or all of it where no one part is."""
    try:
        return settings.get_text_config()
    except ValueError:
        return settings


def _require(num_tokens: int, num_embeddings: int, name: str) -> None:
    if num_tokens > num_embeddings:
        raise ModelError(
            f"model.name: the tokenizer of {name} has {num_tokens} tokens, the model embeds {num_embeddings}; where "
            "tokens were added, call model.resize_token_embeddings(len(tokenizer)) and save both again, or put the "
            "tokenizer there that the model was trained with"
        )


def _highest_token(content: dict[str, Any]) -> int | None:
    """Return the highest token id of a tokenizer.json, None where it is of a kind that says it otherwise."""
    try:
        added = [token["id"] for token in content.get("added_tokens") or ()]
        vocabulary = content["model"]["vocab"]
        known = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return int(max([*added, *known]))
    except (LookupError, TypeError, ValueError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json_in(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
