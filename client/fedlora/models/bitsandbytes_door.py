"""bitsandbytes is imported by who quantises, and by nobody else.

PEFT imports it wherever it is installed, which takes a second, and on some processors it says on standard error what it
lacks. A process of our own calls `spare_bitsandbytes` as its first act: PEFT, when it comes, then finds it missing.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

from fedlora.common.errors import ModelError, one_line

_NAME = "bitsandbytes"
# Who remembers whether it is there, and who has a name for it from the moment it was imported itself.
_ASKED_ONCE = (
    ("peft.import_utils", "is_bnb_available"),
    ("peft.import_utils", "is_bnb_4bit_available"),
    ("transformers.utils.import_utils", "is_bitsandbytes_available"),
)
_HOLDERS = ("peft.helpers", "transformers.integrations.bitsandbytes")


def spare_bitsandbytes() -> None:
    """Let PEFT, where it is not imported yet, be imported as if bitsandbytes were not installed."""
    if not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


@contextmanager
def bitsandbytes_spared() -> Iterator[None]:
    """Spare it for as long as the context lasts, in a process that may not be ours alone."""
    before = list(sys.meta_path)
    spare_bitsandbytes()
    try:
        yield
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder in before]


def use_bitsandbytes(*, why: str) -> bool:
    """Import it for who quantises, and make it known to PEFT; return False where it is not installed.

    Args:
        why: what asks for it, for the error.

    Raises:
        ModelError: it is installed, and cannot be imported here.
    """
    if importlib.util.find_spec(_NAME) is None:
        return False
    try:
        import_module(_NAME)
    # What a library that was built for another machine raises, has no one class.
    except Exception as error:
        raise ModelError(
            f"{why} needs bitsandbytes, which is installed and cannot be imported here ({type(error).__name__}: "
            f"{one_line(error)[:200]}); try: pip install --upgrade bitsandbytes"
        ) from error
    heed_bitsandbytes()
    return True


def heed_bitsandbytes() -> None:
    """Make it known to PEFT where it has been imported, by us or by who made the model."""
    if (package := sys.modules.get(_NAME)) is None:
        return
    for name, function in _ASKED_ONCE:
        if (module := sys.modules.get(name)) is not None:
            getattr(module, function).cache_clear()
    for name in _HOLDERS:
        if (holder := sys.modules.get(name)) is not None:
            holder.__dict__["bnb"] = package


class _PeftFinder(MetaPathFinder):
    """Finds PEFT where the other finders do, and loads it in its own way."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != "peft":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec: ModuleSpec | None = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _PeftLoader(spec.loader)
        return spec


class _PeftLoader(Loader):
    """Loads PEFT while bitsandbytes cannot be imported, and lets it find that out once and for all."""

    def __init__(self, usual: Loader) -> None:
        self._usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._usual
        if module.__spec__ is not None:
            module.__spec__.loader = self._usual
        if _NAME in sys.modules:
            self._usual.exec_module(module)
            return
        # None is Python's own mark for what must not be imported; find_spec heeds it too.
        sys.modules[_NAME] = cast(ModuleType, None)
        try:
            self._usual.exec_module(module)
            for name, function in _ASKED_ONCE:
                getattr(import_module(name), function)()
        finally:
            del sys.modules[_NAME]
