"""Which functions a worker can be given: those that it can import."""

import sys
from collections.abc import Callable
from functools import partial

from fedlora.common.errors import ConfigError


def require_importable(make_trainer: Callable[..., object]) -> None:
    """Check that another process can import the function that makes trainers.

    Raises:
        ConfigError: it is a lambda or an inner function, or was typed at a prompt.
    """
    remedy = "define it with def at the outermost level of a script or module: the process that trains imports it"
    if not _is_found_by_its_name(make_trainer):
        raise ConfigError(f"make_trainer is {make_trainer!r}, which no other process can import; {remedy}")
    if getattr(make_trainer, "__module__", "") == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ConfigError(f"make_trainer was typed at a prompt, where no other process can import it; {remedy}")


def _is_found_by_its_name(make_trainer: Callable[..., object]) -> bool:
    """Return whether a function, the one of a partial, or an object's class is what its module has by its name."""
    given: object = make_trainer
    while isinstance(given, partial):
        given = given.func
    named = given if hasattr(given, "__qualname__") else type(given)
    found: object = sys.modules.get(str(getattr(named, "__module__", "")))
    for part in str(getattr(named, "__qualname__", "")).split("."):
        found = getattr(found, part, None)
    return found is named
