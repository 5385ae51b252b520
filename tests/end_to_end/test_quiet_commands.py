"""Without quantisation no command imports bitsandbytes, however loud it is, and standard error stays empty."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RunFile = Callable[..., Path]

PACKAGE = """
import atexit, os, pathlib, sys
pathlib.Path(__file__).with_name("imported").touch()
print("Failed to load CPU gemm_4bit_forward", file=sys.stderr)
print("on standard output too")
os.write(2, b"and a library's own words\\n")
atexit.register(os.write, 2, b"goodbye\\n")
__version__ = "0.50.0"
"""


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """Return the folder of a package of that name which says things, and notes there that it was imported."""
    folder = tmp_path / "path" / "bitsandbytes"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    return folder


def python(loud: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Return how Python ended with the loud package first on the path."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=loud.parents[1],
        env=os.environ | {"PYTHONPATH": str(loud.parent)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


SIMULATE = ("simulate", "run.toml", "--out", "out", "--workers", "2")
OTHERS = (("--help",), ("plan", "run.toml"), ("doctor", "out"), ("export", "out", "--merge", "--out", "merged"))


@pytest.mark.parametrize(
    "commands", [(SIMULATE,), pytest.param((SIMULATE, *OTHERS), marks=pytest.mark.slow)], ids=["simulate", "all"]
)
def test_no_command_imports_it(loud: Path, run_file: RunFile, commands: tuple[tuple[str, ...], ...]) -> None:
    run_file("federation.rounds=1")
    # One after the other in one interpreter, which imports once what each would.
    script = loud.parents[1] / "commands.py"
    script.write_text(
        "import sys; from pathlib import Path; from fedlora.cli.main import main\n"
        "from fedlora.finished.resident_check import ResidentCheck\n"
        "if __name__ == '__main__':\n"
        f"    for arguments in {commands!r}:\n"
        "        sys.argv = ['fedlora', *arguments]\n"
        "        try:\n"
        "            main()\n"
        "        except SystemExit as ended:\n"
        "            assert not ended.code, (arguments, ended.code)\n"
        f"        assert not Path({str(loud / 'imported')!r}).exists(), arguments\n"
        # As a server does it.
        f"    if {len(commands)} > 1:\n"
        "        with ResidentCheck() as check:\n"
        "            assert check(Path('out/adapter')) == ''\n"
    )
    done = python(loud, script)
    assert (done.returncode, done.stderr) == (0, "")
    assert "on standard output too" not in done.stdout
    assert not (loud / "imported").exists()


def test_peft_learns_of_it_from_who_needs_it_and_code_of_the_users_own_may_import_it(loud: Path) -> None:
    done = python(
        loud,
        "-c",
        "from fedlora.models.bitsandbytes_door import heed_bitsandbytes, spare_bitsandbytes, use_bitsandbytes\n"
        "spare_bitsandbytes()\n"
        "import peft.helpers, peft.import_utils, sys\n"
        "assert 'bitsandbytes' not in sys.modules and peft.helpers.bnb is None\n"
        "import bitsandbytes\n"
        "assert not peft.import_utils.is_bnb_available()\n"
        "heed_bitsandbytes()\n"
        "assert peft.import_utils.is_bnb_available() and peft.helpers.bnb is bitsandbytes\n"
        "assert use_bitsandbytes(why='the test')\n",
    )
    assert done.returncode == 0, done.stderr


def test_one_that_cannot_be_imported_is_one_line_for_who_needs_it(loud: Path) -> None:
    (loud / "__init__.py").write_text("raise RuntimeError('built for\\nanother CUDA')")
    lines = "from fedlora.models.bitsandbytes_door import use_bitsandbytes\n"
    done = python(loud, "-c", f"{lines}use_bitsandbytes(why=\"model.quantization = '4bit'\")")
    assert done.stderr.splitlines()[-1] == (
        "fedlora.common.errors.ModelError: model.quantization = '4bit' needs bitsandbytes, which is installed and "
        "cannot be imported here (RuntimeError: built for another CUDA); try: pip install --upgrade bitsandbytes"
    )
