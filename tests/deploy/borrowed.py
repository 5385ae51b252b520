"""Environments of their own that download nothing: the packages of the running one, fedlora left out, lie beside."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

_LEFT_OUT = ("fedlora", "_fedlora", "__editable__")


def environment_in(folder: Path) -> Path:
    """Return the Python of a new environment in `folder`, to which all packages but fedlora are there already.

    They are on its path, and not in it, so that nothing that is installed or removed there touches them.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    lend_packages(folder, beside=folder.with_name(f"{folder.name}-borrowed"))
    return folder / "bin" / "python"


def lend_packages(environment: Path, *, beside: Path) -> None:
    """Put the packages of the running environment on the path of another, by links in a folder `beside` it."""
    beside.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(_LEFT_OUT):
            (beside / entry.name).symlink_to(entry)
    (packages,) = environment.glob("lib/python*/site-packages")
    for older in (*packages.glob("setuptools*"), packages / "_distutils_hack"):  # Of Python's own, before 3.12.
        shutil.rmtree(older, ignore_errors=True)
    (packages / "distutils-precedence.pth").unlink(missing_ok=True)
    (packages / "borrowed.pth").write_text(f"{beside}\n")


def alone(folder: Path) -> dict[str, str]:
    """Return an environment in which an installed command has nothing of this clone: neither its path nor its home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"HOME": str(folder), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
