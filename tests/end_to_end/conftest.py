"""A small run for end-to-end tests: a tiny real model on tiny real pictures, everything else as a user has it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.cli.main import main
from fedlora.common.run_file import load_run, to_toml

RunFile = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_file(tmp_path: Path, tiny_vision_model: Path, tiny_digits: Path) -> RunFile:
    """Return a function that writes a run file: three clients, two rounds, dropout on, with overrides."""
    base = tmp_path / "base.toml"
    base.write_text(
        f"""
        [run]
        name = "tiny"
        [model]
        name = "{tiny_vision_model}"
        [task]
        image_size = 16
        [data]
        path = "{tiny_digits}"
        [lora]
        rank = 4
        dropout = 0.1
        [train]
        steps = 3
        batch_size = 8
        learning_rate = 0.01
        device = "cpu"
        [federation]
        rounds = 2
        [evaluation]
        round_examples = 12
        client_examples = 4
        """
    )

    def write(*overrides: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(to_toml(load_run(base, overrides)))
        return path

    return write


@pytest.fixture
def fedlora(tmp_path: Path) -> Command:
    """Return a function that runs the command in a process of its own, in tmp_path."""

    def run(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedlora.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def fedlora_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command in this process, whose workers are there sooner, in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        code, printed = ended.value.code, capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, code if isinstance(code, int) else 0, printed.out, printed.err)

    return run
