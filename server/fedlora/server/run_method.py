"""The aggregation method that a run names, and the run that names a given method."""

import dataclasses

from fedlora.aggregation import METHODS, Method
from fedlora.common.config import OwnMethod, RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import parse_run


def method_of(config: RunConfig) -> Method:
    """Return the method that the run names, with its settings.

    Raises:
        ConfigError: it was one of somebody's own, which only `simulate(config, method=...)` can be given.
    """
    settings = config.aggregation.model_dump()
    name = settings.pop("method")
    if isinstance(config.aggregation, OwnMethod):
        raise ConfigError(
            f"aggregation.method is 'own', {config.aggregation.name}: a method of one's own is given in Python, "
            "simulate(config, method=...); or choose another"
        )
    return METHODS[name](**settings)


def naming(method: Method, config: RunConfig) -> RunConfig:
    """Return the run with `method` and its settings in [aggregation], so that its folder tells how it was done.

    Raises:
        ConfigError: the method does not go with another setting of the run.
    """
    kind = type(method)
    settings: dict[str, object]
    if METHODS.get(method.name) is kind and dataclasses.is_dataclass(method):
        settings = {"method": method.name, **dataclasses.asdict(method)}
    else:
        # Without a text of its own an object has its address in memory, which is another one at the next start.
        is_told = kind.__repr__ is not object.__repr__
        path = f"{kind.__module__}.{kind.__qualname__}"
        settings = {"method": "own", "name": method.name, "settings": repr(method) if is_told else path}
    return parse_run(config.model_dump(mode="json") | {"aggregation": settings}, origin="simulate(method=...)")
