"""Which functions a worker can be given: those that it can import."""

import pickle
import sys
from collections.abc import Callable

from fedlora.common.errors import ConfigError


def require_importable(make_trainer: Callable[..., object]) -> None:
    """Check that another process can import the function that makes trainers.

    Raises:
        ConfigError: it is a lambda or an inner function, or was typed at a prompt.
    """
    remedy = "define it with def at the outermost level of a script or module: the process that trains imports it"
    try:
        pickle.dumps(make_trainer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"make_trainer is {make_trainer!r}, which no other process can import; {remedy}") from error
    if getattr(make_trainer, "__module__", "") == "__main__" and not hasattr(sys.modules["__main__"], "__file__"):
        raise ConfigError(f"make_trainer was typed at a prompt, where no other process can import it; {remedy}")
