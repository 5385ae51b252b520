"""The guide's Flower app, as it stands there: run by itself, and taken by Flower's own command."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from guide_pages import ROOT, piece_with

from fedlora.adapters import load_adapter

PAGE = ROOT / "deploy" / "guide" / "flower.md"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Return a folder with the guide's app.py and pyproject.toml."""
    folder = tmp_path / "example"
    folder.mkdir()
    (folder / "app.py").write_text(piece_with(PAGE, "python", "LoraFairStrategy("), encoding="utf-8")
    (folder / "pyproject.toml").write_text(piece_with(PAGE, "toml", "app:server_app"), encoding="utf-8")
    return folder


def _run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    quiet = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(folder.parent / "flower"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # peft 0.21 asks transformers 5 by a name that version 6 will not have.
        "PYTHONWARNINGS": "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    }
    return subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_flowers_command_takes_the_readmes_app(example: Path) -> None:
    ended = _run([str(Path(sys.executable).parent / "flwr"), "build", "--app", "."], example)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (bundle,) = example.glob("*.fab")
    assert bundle.stat().st_size > 0
    components = tomllib.loads((example / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    app = (example / "app.py").read_text()
    assert all(f"\n{name} = " in app for _, name in (place.split(":") for place in components.values()))
    assert "run_simulation" not in app


@pytest.mark.slow
def test_the_readmes_flower_app_runs_learns_and_leaves_a_peft_folder(example: Path) -> None:
    ended = _run([sys.executable, "app.py"], example)
    assert ended.returncode == 0, ended.stderr
    accuracy, error_after = map(float, ended.stdout.strip().splitlines()[-1].split())
    assert accuracy > 0.7
    assert 0 < error_after < 1
    assert "is left out" not in ended.stderr
    assert "deprecated" not in ended.stderr
    adapter = load_adapter(example / "flower-adapter")
    assert len(adapter.layers) == 4
    assert set(adapter.dense) == {"classifier.weight", "classifier.bias"}
