"""What was typed of a method: its name and settings, and the clients' weights."""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Sequence
from types import NoneType
from typing import get_args, get_type_hints

from fedlora.aggregation import METHODS, Method
from fedlora.common.errors import ConfigError


def method_from(name: str, settings: Iterable[str]) -> Method:
    """Return the method of that name with its `key=value` settings.

    Raises:
        ConfigError: there is no such method or setting, or the setting has no such value.
    """
    if name not in METHODS:
        raise ConfigError(f"--method is {name!r}; expected one of {', '.join(METHODS)}")
    kind = METHODS[name]
    defaults = settings_of(kind())
    kinds = get_type_hints(kind)
    given: dict[str, object] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not (equals and key):
            raise ConfigError(f"--set {setting}: expected key=value, such as ridge=0.1")
        if key not in defaults:
            known = ", ".join(f"{key}={_typed(value)}" for key, value in defaults.items())
            has = f"expected one of its settings, with their defaults: {known}" if known else "it has no settings"
            raise ConfigError(f"--set {setting}: {name} has no setting {key!r}; {has}")
        given[key] = _value(setting, text, kinds[key])
    try:
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"--set of {name}: {error}") from error


def settings_of(method: Method) -> dict[str, object]:
    """Return a method's settings by name."""
    return {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}  # type: ignore[arg-type]


def settings_text(method: Method) -> str:
    """Return a method's settings as one types them, empty if it has none."""
    return ", ".join(f"{key}={_typed(value)}" for key, value in settings_of(method).items())


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


def _value(setting: str, text: str, kind: object) -> object:
    """Return the text as a value of that type; words are for the method itself to judge."""
    if NoneType in get_args(kind):
        if text.lower() == "none":
            return None
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    try:
        value: object = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float:
        if not is_number:
            raise ConfigError(f"--set {setting}: expected a number")
        return float(value)  # type: ignore[arg-type]
    if kind is int and not (is_number and isinstance(value, int)):
        raise ConfigError(f"--set {setting}: expected a whole number")
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"--set {setting}: expected true or false")
    return value


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)
