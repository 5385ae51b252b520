"""The command: quick help, exit codes, and one line on stderr for what a user can mend."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from fedlora.common.run_file import load_run
from fedlora.simulation import preset

Run = Callable[..., Any]

HEAVY = ("torch", "transformers", "peft", "flwr", "ray", "pydantic", "numpy", "matplotlib", "safetensors", "PIL")
IMPORTED_BY = """
import sys
from fedlora.cli.main import app

try:
    app(sys.argv[1:], standalone_mode=True)
except SystemExit as end:
    assert end.code == 0, end.code
print("imported:", *(name for name in {heavy} if name in sys.modules))
"""


ON_WINDOWS = """
import sys

sys.modules["fcntl"] = None
from fedlora.cli.main import main

sys.platform = "win32"
main()
"""


def installed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Return what the installed command did in `folder`."""
    command = [str(Path(sys.executable).with_name("fedlora")), *arguments]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(done: Any) -> list[str]:
    """Return the lines on stderr of a command that failed with our own error."""
    assert done.code == 1
    assert done.out == ""
    return done.err.splitlines()


def test_windows_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: fedlora does not run on Windows, where it cannot lock its folders; use WSL 2\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["simulate", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = IMPORTED_BY.format(heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


def test_help_names_the_verbs_and_every_option(tmp_path: Path) -> None:
    overview, verb = installed(tmp_path, "--help"), installed(tmp_path, "simulate", "--help")
    assert (overview.returncode, verb.returncode) == (0, 0)
    assert "Usage: fedlora" in overview.stdout
    assert "simulate" in overview.stdout
    options = ("--set", "--preset", "--out", "--engine", "--workers", "--resume", "--print-config")
    assert all(option in verb.stdout for option in options)
    assert overview.stderr == verb.stderr == ""


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    done = installed(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"fedlora {version('fedlora')}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bogus"],
        ["--bogus"],
        ["simulate", "--bogus"],
        ["simulate", "--workers", "0"],
        ["simulate", "--workers", "x"],
        ["simulate", "a.toml", "b.toml"],
    ],
)
def test_a_command_that_makes_no_sense_is_a_usage_error(fedlora: Run, arguments: list[str], folder: Path) -> None:
    done = fedlora(*arguments)
    assert done.code == 2
    assert "Usage: " in done.out + done.err
    assert "Traceback" not in done.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["missing.toml"], "missing.toml: no such file; `fedlora simulate --print-config > missing.toml` writes one"),
        (["--set", "train.stepps=3"], "train.stepps: unknown key; did you mean train.steps?"),
        (["--set", "train.learning_rate=nan"], "train.learning_rate is nan: input should be a finite number"),
        (["--set", "steps=3"], "--set steps=3: expected section.key=value, such as train.learning_rate=0.001"),
        (["--preset", "nope"], "there is no preset 'nope'; there are digits, emoji"),
        (["run.toml", "--preset", "digits"], "RUN.toml and --preset name two runs; give one of them"),
        (["--engine", "spark"], "--engine is 'spark'; expected inprocess or ray"),
        (["--resume"], "no run to resume; name its folder with --out, or leave out --resume"),
        (["--resume", "--out", "x", "--preset", "digits"], "x holds no run to resume; leave out --resume to start one"),
        (["--resume", "--out", "x"], "x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_can_mend_is_one_line_and_nothing_is_written(
    fedlora: Run, arguments: list[str], line: str, folder: Path
) -> None:
    (error,) = errors(fedlora("simulate", *arguments))
    assert error.startswith("error: ")
    assert line in error
    assert list(folder.iterdir()) == []


def test_each_finding_in_a_run_file_is_a_line_of_its_own(fedlora: Run, folder: Path) -> None:
    (folder / "run.toml").write_text('[lora]\nrank = "x"\nalfa = 3\n')
    assert errors(fedlora("simulate", "run.toml")) == [
        "error: run.toml: lora.rank is 'x': input should be a valid integer",
        "error: run.toml: lora.alfa: unknown key; did you mean lora.alpha?",
    ]
    assert [entry.name for entry in folder.iterdir()] == ["run.toml"]


def test_a_folder_that_holds_other_files_is_not_touched(fedlora: Run, folder: Path) -> None:
    (folder / "x").mkdir()
    (folder / "x" / "thesis.tex").touch()
    (error,) = errors(fedlora("simulate", "--out", "x"))
    assert error == "error: x is not empty and holds no run; choose another folder with --out"
    assert [entry.name for entry in (folder / "x").iterdir()] == ["thesis.tex"]


def test_the_printed_run_is_a_file_that_gives_the_same_run(fedlora: Run, folder: Path) -> None:
    for arguments, expected in [
        ([], preset("digits")),
        (["--preset", "emoji", "--set", "train.epochs=0.5"], preset("emoji", "train.epochs=0.5")),
    ]:
        done = fedlora("simulate", "--print-config", *arguments)
        assert (done.code, done.err) == (0, "")
        (folder / "run.toml").write_text(done.out)
        assert load_run(folder / "run.toml") == expected
    assert [entry.name for entry in folder.iterdir()] == ["run.toml"]


def test_the_command_is_the_module_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedlora.cli", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == f"fedlora {version('fedlora')}\n"
