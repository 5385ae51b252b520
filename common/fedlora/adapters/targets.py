"""Which layers a LoraConfig chooses, by the rules that PEFT has for it."""

import re
from collections.abc import Iterable, Mapping
from typing import cast

from fedlora.common.errors import AdapterError
from fedlora.common.patterns import matches, matches_end

_ALL_LINEAR = "all-linear"


def is_named(path: str, names: str | Iterable[str]) -> bool:
    """Return whether an expression matches all of the path, or a name in a list is the path or its end, as in PEFT."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def layer_not_chosen(config: Mapping[str, object], paths: Iterable[str], *, origin: str) -> str:
    """Return the first of the layers that this configuration does not choose, and why; empty where it chooses all.

    A list of layers and an expression that say the same in other words are told apart by nothing here: what counts is
    whether PEFT would adapt the layers that the tensors are of.

    Args:
        origin: names the configuration in errors.

    Raises:
        AdapterError: a setting is no regular expression, or of another type than PEFT's.
    """
    try:
        for path in paths:
            if reason := _reason_against(path, config):
                return f"{reason}, which does not choose {path}"
    except (AdapterError, TypeError, ValueError) as error:
        raise AdapterError(f"{origin}: target_modules and the settings beside it make no sense ({error})") from error
    return ""


def _reason_against(path: str, config: Mapping[str, object]) -> str:
    excluded, targets = (
        cast(str | list[str] | None, config.get(f"{which}_modules")) for which in ("exclude", "target")
    )
    if excluded and _names(path, excluded):
        return f"exclude_modules is {excluded!r}"
    if targets is None or (isinstance(targets, str) and targets.lower() == _ALL_LINEAR):
        return ""
    if not _names(path, targets):
        return f"target_modules is {targets!r}"
    numbers = config.get("layers_to_transform")
    if isinstance(targets, str) or numbers is None or numbers == []:
        return ""
    chosen = [numbers] if isinstance(numbers, int) else list(cast(list[int], numbers))
    return "" if _layer_number(path, config.get("layers_pattern")) in chosen else f"layers_to_transform is {numbers!r}"


def _names(path: str, names: str | Iterable[str]) -> bool:
    """Return what `is_named` does, of a configuration that may come from anybody."""
    return matches(names, path) if isinstance(names, str) else is_named(path, names)


def _layer_number(path: str, pattern: object) -> int | None:
    """Return the number of the layer that the path runs through: the first one behind a name that `pattern` allows.

    Without a pattern any name is allowed that is not the first of the path.
    """
    parts = path.split(".")
    numbered = [place for place in range(1, len(parts) - 1) if parts[place].isdecimal()]
    if not pattern:
        return next((int(parts[place]) for place in numbered if place > 1), None)
    for name in [pattern] if isinstance(pattern, str) else cast(list[str], pattern):
        for place in numbered:
            if matches_end(name, ".".join(parts[:place])):
                return int(parts[place])
    return None
