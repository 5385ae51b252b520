"""What can be known to be wrong of a site before it enrols: an invitation is good once."""

from pathlib import Path

from fedlora.client.site.site_file import SiteConfig
from fedlora.common.errors import ConfigError
from fedlora.common.resources import DATASETS_PREFIX, PACKAGE_PREFIX


def check_before_enrolling(config: SiteConfig, *, beside: Path) -> None:
    """Check that what the site file names is there.

    Args:
        beside: the folder that the site file's paths start from.

    Raises:
        ConfigError: the data, or the folder of the base model, is missing.
    """
    name, model = config.data.path, config.model.path or ""
    if (
        not config.brings_trainer
        and not name.startswith((PACKAGE_PREFIX, DATASETS_PREFIX))
        and not _is_there(name, beside)
    ):
        raise ConfigError(f"data.path: {name!r} is not there; mend the site file first, a token is good once")
    # Anything else may be a name of a hub.
    if model.startswith(("/", ".", "~")) and not _is_there(model, beside):
        raise ConfigError(f"model.path: {model!r} is not there; mend the site file first, a token is good once")


def _is_there(name: str, beside: Path) -> bool:
    return (beside / Path(name).expanduser()).exists()
