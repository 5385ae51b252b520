"""A small run for end-to-end tests: a tiny real model on tiny real pictures, everything else as a user has it."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from small_run import write_run_file
from warm_start import run_warm

from fedlora.cli.main import main
from fedlora.simulation import SimulationResult, simulate

RunFile = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_file(tmp_path: Path, tiny_vision_model: Path, tiny_digits: Path) -> RunFile:
    """Return a function that writes a run file with overrides."""
    return partial(write_run_file, tmp_path, tiny_vision_model, tiny_digits)


@pytest.fixture(scope="session")
def finished_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_vision_model: Path, tiny_digits: Path
) -> SimulationResult:
    """Return the small run without overrides, finished: not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    return simulate(write_run_file(folder, tiny_vision_model, tiny_digits), out=folder / "out", num_workers=2)


@pytest.fixture
def fedlora(tmp_path: Path) -> Command:
    """Return a function that runs the command in a process of its own, in tmp_path."""

    def run(*arguments: str | Path, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        return run_warm(["-m", "fedlora.cli", *map(str, arguments)], cwd=tmp_path, timeout=timeout)

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
