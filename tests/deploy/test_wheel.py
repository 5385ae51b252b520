"""The wheel and the sdist: all that the installed package needs is in them, and it runs with nothing of a clone."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from borrowed import alone, environment_in
from hatchling.builders.wheel import WheelBuilder
from programs import judged

ROOT = Path(__file__).parents[2]
ROOMS = ("protos", "common", "server", "client")
SHARED = "share/fedlora"


def built(target: str, source: Path, folder: Path) -> Path:
    """Return a wheel or an sdist that is built in `folder` as `make wheel` does it."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{target}", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = (path for path in folder.iterdir() if path.suffix in (".whl", ".gz"))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def files_of(folder: Path) -> set[str]:
    """Return the files that git would keep below a folder, relative to it."""
    listed = judged("git", "-C", folder, "ls-files", "--cached", "--others", "--exclude-standard", ".")
    if listed.returncode != 0:
        pytest.skip("no clone: git does not say which files are the project's")
    return {name for name in listed.stdout.splitlines() if (folder / name).is_file()}


@pytest.fixture(scope="module")
def contents() -> dict[str, str]:
    """Return what a wheel has in it: the place of each file there, and of the file here."""
    builder = WheelBuilder(str(ROOT))
    packaged = {found.distribution_path: found.path for found in builder.recurse_included_files()}
    beside = builder.recurse_explicit_files(builder.config.shared_data)
    return packaged | {found.distribution_path: found.path for found in beside}


def test_the_wheel_has_every_file_of_the_packages(contents: dict[str, str]) -> None:
    packaged = {f"fedlora/{name}" for room in ROOMS for name in files_of(ROOT / room / "fedlora")}
    kinds = {Path(name).suffix or name for name in packaged}
    assert {".j2", ".css", ".toml", ".npz", ".safetensors", ".gz", ".pyi", ".proto", ".typed"} <= kinds
    assert {name for name in contents if name.startswith("fedlora/")} == packaged


def test_what_the_pages_and_files_of_the_wheel_lead_to_lies_beside_them(contents: dict[str, str]) -> None:
    deploy = ROOT / "deploy"
    given = {name.removeprefix(f"{SHARED}/") for name in contents if name.startswith(SHARED)}
    given |= {str(folder) for name in given for folder in Path(name).parents}
    pages = {page.relative_to(deploy) for page in deploy.rglob("*.md") if "results" not in page.parts}
    assert {str(page) for page in pages} <= given
    linked = {
        os.path.normpath(page.parent / target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (deploy / page).read_text())
    }
    mounted = set(re.findall(r"- \./(\S+?):", (deploy / "compose.yaml").read_text()))
    named = re.findall(r"share/fedlora/([\w./@-]*\w)", (deploy / "README.md").read_text())
    for kind in (linked, mounted, set(named)):
        assert kind
        assert kind <= given


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel_and_both_pass_the_index_s_checks(
    wheel: Path, sdist: Path, contents: dict[str, str], tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {re.sub(r"fedlora-[^/]+\.data/data/", "", name) for name in archive.namelist()}
    assert {name for name in names if ".dist-info/" not in name} == set(contents)
    checked = judged(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    assert checked.returncode == 0, checked.stdout
    with tarfile.open(sdist) as archive:
        # A filter is not known before 3.11.4, and what is in it is our own.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = tmp_path.iterdir()
    again = built("wheel", unpacked, tmp_path / "again")
    assert again.name == wheel.name
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


@pytest.mark.slow
def test_the_installed_wheel_simulates_a_round_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    python = environment_in(tmp_path / "environment")
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = alone(tmp_path / "home")
    install = [python, "-m", "pip", "install", "--constraint", ROOT / "constraints.txt", f"{wheel}[text]"]
    subprocess.run(install, check=True, cwd=empty, env=environment, capture_output=True)
    fedlora = python.with_name("fedlora")
    short = ("federation.rounds=1", "train.steps=2", "task.image_size=28", "data.test=0.03")
    command = [fedlora, "simulate", "--workers", "1", *(word for key in short for word in ("--set", key))]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accuracy on held-out examples" in done.stdout
    assert {path.name for path in (empty / "runs" / "digits").iterdir()} >= {"adapter", "report.html", "rounds.jsonl"}
    where = "import fedlora.cli.main, fedlora.v1.messages_pb2 as m; print(fedlora.cli.main.__file__, m.__file__)"
    asked = [python, "-c", where]
    shown = subprocess.run(asked, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert all(path.startswith(str(tmp_path)) for path in shown.stdout.split()), "nothing of the clone"
    assert (tmp_path / "environment" / SHARED / "compose.yaml").exists()
