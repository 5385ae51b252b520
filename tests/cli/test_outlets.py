"""What commands print reaches any terminal, in whatever encoding, and whoever stops reading stops no command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlora.common.run_file import load_run

PRINTS = """
import sys
from rich.console import Console
from rich.table import Table
from fedlora.cli.outlets import prepare_outlets
prepare_outlets()
table = Table("before \\u2192 after")
table.add_row("Z\\u00fcrich \\U0001f600 \\udcff")
Console().print(table)
print("\\u00b1\\u2026", file=sys.stderr)
"""


def run(*arguments: str | Path, encoding: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    variables = environment | ({"PYTHONIOENCODING": encoding} if encoding else {})
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, timeout=600, check=False)


@pytest.mark.parametrize(
    ("encoding", "name", "err"),
    [
        ("ascii", "Z\\u00fcrich \\U0001f600 \\udcff", "+-..."),
        ("latin-1", "Z\u00fcrich \\U0001f600 \\udcff", "\u00b1..."),
        ("cp1252", "Z\u00fcrich \\U0001f600 \\udcff", "\u00b1\u2026"),
        ("utf-8", "Z\u00fcrich \U0001f600 \\udcff", "\u00b1\u2026"),
    ],
)
def test_a_character_that_the_terminal_lacks_is_written_as_another(encoding: str, name: str, err: str) -> None:
    done = run("-c", PRINTS, encoding=encoding)
    assert (done.returncode, done.stderr.decode(encoding)) == (0, f"{err}\n")
    out = done.stdout.decode(encoding)
    assert name in out
    assert ("before \u2192 after" if encoding == "utf-8" else "before -> after") in out


def test_without_unicode_mode_and_locale_it_prints_all_the_same() -> None:
    done = run("-c", PRINTS, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stderr) == (0, b"+-...\n")


# Each starts an interpreter; what latin-1 lacks, cp1252 lacks in part.
@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow), "cp1252", "utf-8"])
def test_the_printed_run_is_toml_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    name = "Z\u00fcrich \u2192 \U0001f600"
    arguments = ["simulate", "--print-config", "--set", f"run.name={name}"]
    done = run("-m", "fedlora.cli", *arguments, encoding=encoding, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "run.toml").write_bytes(done.stdout)
    assert load_run(tmp_path / "run.toml").run.name == name


@pytest.mark.parametrize("is_closed", [False, True])
def test_who_stops_reading_ends_no_command(tmp_path: Path, is_closed: bool) -> None:
    code = (
        "import sys\nfrom fedlora.cli.outlets import prepare_outlets\nprepare_outlets()\n"
        "for number in range(100_000):\n    print(number)\n"
        "print('the end', file=sys.stderr)\nopen(sys.argv[1], 'w').close()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ended")]
    if is_closed:
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == (b"" if is_closed else b"0\n")
        process.stdout.close()
        assert process.stderr.read() == b"the end\n"
        assert process.wait(60) == 0
    assert (tmp_path / "ended").exists()


def test_a_command_whose_first_line_is_enough_ends_well() -> None:
    command = [sys.executable, "-m", "fedlora.cli", "simulate", "--print-config"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
