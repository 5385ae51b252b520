"""The runs that ship inside the package."""

from importlib.resources import as_file, files

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import load_run

PRESETS = ("digits", "emoji")


def preset(name: str, *overrides: str) -> RunConfig:
    """Return one of the embedded runs, with `section.key=value` overrides applied.

    Raises:
        ConfigError: there is no such preset, or an override is wrong.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    with as_file(files("fedlora.embedded") / f"{name}.toml") as path:
        return load_run(path, overrides)
