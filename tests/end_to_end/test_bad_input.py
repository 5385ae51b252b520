"""What a person gets wrong is answered in one line, with exit code 1, and nothing is left behind."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from warm_start import run_warm, start_warm

RunFile = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a refused command prints."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.name=nowhere/at-all", "nowhere/at-all"),
        ("data.path=nowhere.npz", "nowhere.npz: no such file"),
        ("lora.target_modules=['q_prj']", "'q_prj' matches no linear layer"),
        ("lora.rank=1000", "lora.rank is 1000"),
        ("partition.by=label_shards", "client"),
        ("train.learning_rat=1", "did you mean train.learning_rate?"),
        ("train.steps=some", "train.steps is 'some'"),
        ("aggregation.method=lora_fare", "'lora_fair'"),
        ("federation.start_from=nowhere", "nowhere"),
    ],
)
def test_a_wrong_value_is_one_line(
    fedlora_here: Command, run_file: RunFile, tmp_path: Path, override: str, expected: str
) -> None:
    extra = ["--set", "partition.num_clients=1000"] if "label_shards" in override else []
    done = fedlora_here("simulate", run_file(), "--set", override, *extra, "--out", "out", "--workers", "1")
    assert expected in refusal(done)
    assert not (tmp_path / "out").exists()


def test_an_unreadable_toml_is_one_line(fedlora_here: Command, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[run\nname = 3")
    assert "broken.toml: not valid TOML" in refusal(fedlora_here("simulate", "broken.toml"))


def test_a_folder_that_holds_another_run_is_refused_and_kept(
    fedlora_here: Command, run_file: RunFile, tmp_path: Path
) -> None:
    run = run_file("federation.rounds=1")
    assert fedlora_here("simulate", run, "--out", "out", "--workers", "1").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "holds a run" in refusal(fedlora_here("simulate", run, "--out", "out"))
    other = refusal(fedlora_here("simulate", run, "--set", "lora.rank=2", "--out", "out", "--resume"))
    assert "lora.rank is 4, not 2" in other
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    run_file: RunFile, tmp_path: Path, fedlora: Command
) -> None:
    """The limit on a file's size stands in for a full disk: the adapter no longer fits, the small files do."""
    run = run_file("federation.rounds=1", "lora.rank=16")
    script = tmp_path / "full.py"
    script.write_text(
        "import resource, signal, sys; from fedlora.cli.main import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (14_500, 14_500));"
        f"sys.argv = ['fedlora', 'simulate', {str(run)!r}, '--out', 'out', '--workers', '1'];"
        "main() if __name__ == '__main__' else None"
    )
    assert "cannot write" in refusal(run_warm([str(script)], cwd=tmp_path))
    assert fedlora("simulate", "--resume", "--out", "out", "--workers", "1").returncode == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_say_how_to_go_on_and_leave_a_report(
    run_file: RunFile, tmp_path: Path, number: int, status: int
) -> None:
    run = run_file("federation.rounds=500")
    with tempfile.TemporaryFile("w+") as errors:
        process = start_warm(
            ["-m", "fedlora.cli", "simulate", str(run), "--out", "out", "--workers", "1"],
            cwd=tmp_path,
            errors=errors.fileno(),
        )
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "out/rounds/0001/report.json").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.killpg(process.pid, number)  # as a terminal and a service manager do: to the workers too
            assert process.wait(300) == status
        finally:
            process.kill()
        errors.seek(0)
        assert errors.read() == "interrupted; go on with: fedlora simulate --resume --out out\n"
    assert (tmp_path / "out/report.html").exists()


def test_a_bug_shows_its_traceback(run_file: RunFile, tmp_path: Path) -> None:
    script = tmp_path / "bug.py"
    script.write_text(
        "import sys; from fedlora.cli.main import main; from fedlora.server.rounds import draw as plan;"
        "plan.cohort = None;"
        f"sys.argv = ['fedlora', 'simulate', {str(run_file())!r}, '--out', 'out', '--workers', '1'];"
        "main() if __name__ == '__main__' else None"
    )
    done = run_warm([str(script)], cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "TypeError" in done.stderr
