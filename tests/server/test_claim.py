"""Whose folder it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.run_file import load_run, parse_run
from fedlora.server.disk.claim import Claim

CONFIG = RunConfig()

HOLD = """
import sys
from pathlib import Path
from fedlora.common.config import RunConfig
from fedlora.server.disk.claim import Claim

with Claim(Path(sys.argv[1]), RunConfig(), resume=False):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def start(path: Path) -> None:
    """Leave a run that has met its clients at `path`."""
    with Claim(path, CONFIG, resume=False):
        (path / "manifest.json").write_text("{}")


def fail(path: Path, *, resume: bool = False) -> None:
    with pytest.raises(ZeroDivisionError), Claim(path, CONFIG, resume=resume):
        raise ZeroDivisionError


def test_a_new_run_gets_its_folder_and_its_run_file(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x"
    with Claim(path, CONFIG, resume=False) as claim:
        assert claim.is_new
        assert load_run(path / "run.toml") == CONFIG
    assert entries(path) == {"run.toml", "version.json", ".lock"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    with Claim(tmp_path, CONFIG, resume=False) as claim:
        assert claim.is_new


def test_what_a_run_killed_at_its_very_start_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "run.toml.tmp").write_text("[ru")
    with Claim(tmp_path, CONFIG, resume=False) as claim:
        assert claim.is_new
    assert entries(tmp_path) == {"run.toml", "version.json", ".lock"}


def test_a_run_is_continued_when_that_is_asked_for(tmp_path: Path) -> None:
    start(tmp_path)
    before = (tmp_path / "run.toml").read_bytes()
    with Claim(tmp_path, CONFIG, resume=True) as claim:
        assert not claim.is_new
    assert (tmp_path / "run.toml").read_bytes() == before


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(StoreError, match="holds a run; continue it with --resume, or choose another folder with --out"):
        Claim(tmp_path, CONFIG, resume=False)


def test_another_run_is_not_continued_and_its_differences_are_named(tmp_path: Path) -> None:
    start(tmp_path)
    other = parse_run({"lora": {"rank": 4}, "train": {"learning_rate": 0.5}})
    message = r"differs from this one: lora\.rank is 8, not 4; train\.learning_rate is 0\.001, not 0\.5"
    with pytest.raises(StoreError, match=message):
        Claim(tmp_path, other, resume=True)


def test_a_run_file_that_was_damaged_is_named(tmp_path: Path) -> None:
    start(tmp_path)
    (tmp_path / "run.toml").write_text("[run")
    with pytest.raises(ConfigError, match=r"run\.toml: not valid TOML"):
        Claim(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_left_as_it_is(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match="is not empty and holds no run; choose another folder with --out"):
        Claim(tmp_path, CONFIG, resume=resume)
    assert entries(tmp_path) == {"thesis.tex"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file; expected a folder for the run"):
        Claim(tmp_path / "file", CONFIG, resume=False)
    for path, reason in [(tmp_path / "file" / "x", "Not a directory"), (tmp_path / ("x" * 300), "File name too long")]:
        with pytest.raises(StoreError, match=rf"cannot be used \({reason}\); choose another folder with --out"):
            Claim(path, CONFIG, resume=False)
    assert entries(tmp_path) == {"file"}


def test_a_run_that_failed_before_its_manifest_leaves_nothing(tmp_path: Path) -> None:
    fail(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    fail(tmp_path / "empty")
    assert entries(tmp_path / "empty") == set()


def test_a_run_that_failed_before_its_manifest_keeps_what_others_put_there(tmp_path: Path) -> None:
    claim = Claim(tmp_path / "x", CONFIG, resume=False)
    (tmp_path / "x" / "notes.txt").touch()
    claim.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert entries(tmp_path / "x") == {"notes.txt"}


def test_a_run_that_failed_after_its_manifest_can_be_continued(tmp_path: Path) -> None:
    start(tmp_path / "x")
    fail(tmp_path / "x", resume=True)
    with Claim(tmp_path / "x", CONFIG, resume=True):
        pass


def test_a_run_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    code = HOLD.replace("import sys", "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))", 1)
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300)
    assert "StoreError: cannot write" in found.stderr
    assert entries(tmp_path) == set()


def test_a_folder_in_use_by_another_process_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with held_by_another_process(path):
        with pytest.raises(StoreError, match="in use by another process; wait for its end, or choose another folder"):
            Claim(path, CONFIG, resume=True)
        assert entries(path) == {"run.toml", "version.json", ".lock"}


def test_two_claims_of_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    with Claim(tmp_path, CONFIG, resume=False):
        with pytest.raises(StoreError, match="in use by another process"):
            Claim(tmp_path, CONFIG, resume=True)
        assert (tmp_path / "run.toml").is_file()
    with Claim(tmp_path, CONFIG, resume=True):
        pass


def test_a_killed_process_holds_nothing_any_more(tmp_path: Path) -> None:
    with held_by_another_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with Claim(tmp_path, CONFIG, resume=True) as claim:
            assert not claim.is_new
