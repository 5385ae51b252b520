"""Programs that judge what lies under deploy/: from PyPI beside this Python, or the machine's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def program(name: str) -> str:
    """Return the path of a program; a test that asks for one that is not here skips, and says its name."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def judged(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    """Return what a program says, as text, however it ends."""
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
