"""What the Dockerfile's RUN instructions make, outside of a container and without downloading."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from borrowed import alone, environment_in, lend_packages
from images import DEPLOY, environment_of, mapped, stages_of

ROOT = DEPLOY.parent
STAGES = stages_of(DEPLOY / "Dockerfile")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["server", "client"])
def test_the_dockerfiles_commands_make_an_environment_whose_fedlora_runs(target: str, tmp_path: Path) -> None:
    """All but the one that makes a user. What would be downloaded is there, in the versions of the constraints."""
    paths = {name: tmp_path / name.strip("/").replace("/", "-") for name in ("/src", "/dist", "/opt/fedlora")}
    builder = environment_in(tmp_path / "builder").parent
    copy_as_docker_does(paths["/src"])
    paths["/dist"].mkdir()
    shutil.copy(ROOT / "constraints.txt", paths["/dist"])

    def run(commands: Sequence[str], stage: str, folder: Path) -> None:
        environment = (
            alone(tmp_path) | environment_of(STAGES[stage], paths) | {"PATH": f"{builder}:{os.environ['PATH']}"}
        )
        for command in commands:
            subprocess.run(["sh", "-euc", mapped(command, paths)], cwd=folder, env=environment, check=True)

    run(STAGES["wheel"].runs(), "wheel", paths["/src"])
    packages = f"{target}-packages"
    makes_environment, *installs = STAGES[packages].runs()
    run([makes_environment], packages, tmp_path)
    lend_packages(paths["/opt/fedlora"], beside=tmp_path / "lent")
    run(installs, packages, tmp_path)
    words = [paths["/opt/fedlora"] / "bin" / "fedlora", *STAGES[target].last("CMD").words[:2], "--help"]
    assert subprocess.run(words, cwd=tmp_path, env=alone(tmp_path), check=False).returncode == 0
    assert (paths["/opt/fedlora"] / "share" / "fedlora" / "compose.yaml").exists()


def copy_as_docker_does(target: Path) -> None:
    """Copy of the clone what .dockerignore lets through: it lists what goes, and folders in these that stay."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    stay = {ROOT / line for line in lines if line.startswith("deploy/")}

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if name == "__pycache__" or Path(folder) / name in stay]

    for name in (line.removeprefix("!") for line in lines if line.startswith("!")):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=left_out)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, target / name)
