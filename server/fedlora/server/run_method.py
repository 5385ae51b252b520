"""The aggregation method that a run names, and the run that names a given method."""

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run
from fedlora.common.section import Section
from fedlora.methods import METHODS, Method


def method_of(config: RunConfig) -> Method:
    """Return the method that the run names, with its settings.

    Raises:
        ConfigError: it was one of somebody's own, which only `simulate(config, method=...)` can be given.
    """
    if isinstance(config.aggregation, Method):
        return config.aggregation
    raise ConfigError(
        f"aggregation.method is 'own', {config.method_name}: a method of one's own is given in Python, "
        "simulate(config, method=...); or choose another"
    )


def naming(method: Method, config: RunConfig) -> RunConfig:
    """Return the run with `method` and its settings in [aggregation], so that its folder tells how it was done.

    Raises:
        ConfigError: the method does not go with another setting of the run.
        TypeError: it is no method.
    """
    if not isinstance(method, Method):
        raise TypeError(
            f"method is {type(method).__name__}; expected an object of a subclass of fedlora.methods.Method"
        )
    try:
        config.require_fit(method)
    except ValueError as error:
        raise ConfigError(f"simulate(method=...): {error}") from error
    if method.name in METHODS and METHODS[method.name] is type(method):
        settings = method.model_dump(mode="json")
    else:
        # Not what the class has made of it: an object's address in memory is another one at the next start.
        settings = {"method": "own", "name": method.name, "settings": Section.__repr__(method)}
    return parse_run(config.model_dump(mode="json") | {"aggregation": settings}, origin="simulate(method=...)")
