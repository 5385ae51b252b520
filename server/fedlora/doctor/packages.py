"""Python and the packages, against what fedlora's own metadata ask for."""

import platform
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fedlora.doctor.finding import Finding, ok, problem

# What a run stands on, and worth a line where all is well.
_NAMED = ("torch", "transformers", "peft", "flwr", "grpcio", "protobuf")


def python() -> Iterator[Finding]:
    """Find out whether this Python is new enough."""
    wanted, found = SpecifierSet(metadata("fedlora")["Requires-Python"]), platform.python_version()
    if found in wanted:
        yield ok("python", f"{found} ({sys.executable}); needs {wanted}")
    else:
        remedy = "python3.12 -m venv .venv && .venv/bin/pip install fedlora"
        yield problem("python", f"{found} ({sys.executable}); needs {wanted}", remedy)


def packages() -> Iterator[Finding]:
    """Find out whether every package that fedlora needs is there in a version that it was made for."""
    yield from against([Requirement(text) for text in requires("fedlora") or ()])


def against(requirements: list[Requirement]) -> Iterator[Finding]:
    """Find out which of `requirements` are met here; those of an extra are left aside."""
    good: dict[str, str] = {}
    for needed in requirements:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        remedy = f"pip install {shlex.quote(f'{needed.name}{needed.specifier}')}"
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            yield problem("packages", f"{needed.name} is not installed; needs {needed.specifier or 'any'}", remedy)
            continue
        if needed.specifier.contains(found, prereleases=True):
            good[needed.name] = found
        else:
            yield problem("packages", f"{needed.name} is {found}; needs {needed.specifier}", remedy)
    named = ", ".join(f"{name} {good[name]}" for name in _NAMED if name in good)
    yield ok("packages", f"{len(good)} as fedlora needs them{f', among them {named}' if named else ''}")
