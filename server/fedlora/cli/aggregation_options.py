"""What was typed of an aggregation: the method with its settings, the clients' folders, and their weights."""

import math
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from fedlora.common.errors import ConfigError
from fedlora.common.parsing import toml_in
from fedlora.methods import METHODS, Method


def method_from(name: str, settings: Iterable[str]) -> Method:
    """Return the method of that name with its `key=value` settings.

    Raises:
        ConfigError: there is no such method or setting, or the setting has no such value.
    """
    if name not in METHODS:
        raise ConfigError(f"--method is {name!r}; expected one of {', '.join(METHODS)}")
    kind = METHODS[name]
    defaults = settings_of(kind())
    given: dict[str, object] = {}
    typed: dict[str, str] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not (equals and key):
            raise ConfigError(f"--set {setting}: expected key=value, such as ridge=0.1")
        if key not in defaults:
            known = ", ".join(f"{key}={_typed(value)}" for key, value in defaults.items())
            has = f"expected one of its settings, with their defaults: {known}" if known else "it has no settings"
            raise ConfigError(f"--set {setting}: {name} has no setting {key!r}; {has}")
        given[key], typed[key] = _value(text), setting
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        (detail, *_) = error.errors()
        message = detail["msg"][0].lower() + detail["msg"][1:]
        wrong = [typed[str(detail["loc"][0])]] if detail["loc"] else list(typed.values())
        raise ConfigError(f"--set {' --set '.join(wrong)}: {message}") from error


def settings_of(method: Method) -> dict[str, object]:
    """Return a method's settings by name."""
    return {key: getattr(method, key) for key in type(method).model_fields}


def settings_text(method: Method) -> str:
    """Return a method's settings as one types them, empty if it has none."""
    return ", ".join(f"{key}={_typed(value)}" for key, value in settings_of(method).items())


def clients_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by the names of their clients: the last part of each path, or all of it if two end alike.

    Raises:
        ConfigError: a folder is given twice.
    """
    times = Counter(map(os.path.realpath, folders))
    for folder in folders:
        if times[os.path.realpath(folder)] > 1:
            raise ConfigError(f"{folder}: given twice; give each folder once, and with --weights its share")
    names = [Path(os.path.abspath(folder)).name for folder in folders]
    if max(Counter(names).values()) > 1 or not all(names):
        names = [str(folder) for folder in folders]
    return dict(zip(names, folders, strict=True))


def weights_from(text: str | None, clients: Sequence[str]) -> dict[str, float]:
    """Return the weight of every client from comma separated numbers in their order; all 1 from None.

    Raises:
        ConfigError: there are more or fewer numbers than clients, or one is no finite, positive number.
    """
    if text is None:
        return dict.fromkeys(clients, 1.0)
    words = [word.strip() for word in text.split(",")]
    if len(words) != len(clients):
        raise ConfigError(
            f"--weights {text}: {len(words)} of them for {len(clients)} adapters; "
            "give one number for each, in the order of the folders, such as 3,1,2"
        )
    weights: dict[str, float] = {}
    for client, word in zip(clients, words, strict=True):
        try:
            weight = float(word)
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"--weights {text}: the weight of {client} is {word!r}; expected a positive number")
        weights[client] = weight
    return weights


def _value(text: str) -> object:
    """Return the text as a TOML value; a word, without quotes, is itself, and none is no value."""
    if text.lower() == "none":
        return None
    try:
        return toml_in(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
