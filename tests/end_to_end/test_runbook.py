"""deploy/operations.md by use: its commands, typed as they stand there."""

import shutil
import subprocess
from pathlib import Path

import pytest
from deployment import Deployment, Process
from ended_runs import adapter_sha256
from guide_pages import ROOT, pieces

RUNBOOK = ROOT / "deploy" / "operations.md"
FIRST = Path(__file__).with_name("version_1")
SITES = ("chalk", "pencil")
SECONDS = 300.0


def commands_under(title: str) -> list[str]:
    """Return the commands under a heading, in their order."""
    found = [piece.text for piece in pieces(RUNBOOK) if piece.kind == "command" and piece.heading == title]
    assert found, title
    return found


def typed(command: str, folder: Path) -> None:
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    # A file may have been renamed while it was looked at, and lines added to another, which is of no matter.
    lost = [line for line in done.stderr.splitlines() if ".tmp" not in line and "audit.jsonl" not in line]
    assert not lost, done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a run that two sites are in the middle of, where the runbook has it."""
    copy = shutil.copytree(FIRST, tmp_path / "first")
    (copy / "runs").mkdir()
    (copy / "server").rename(copy / "runs" / "server")
    monkeypatch.chdir(copy)
    return copy


def finish(folder: Path, out: str, *, at_phase: bool = False) -> None:
    """Run what is left of the run in `out`; make the backup while it goes on, where that is asked for."""
    made: list[str] = []

    def back_up(_process: Process, phase: str) -> None:
        if phase == "publish" and not made:
            made.append(phase)
            for command in commands_under("Backup"):
                typed(command, folder)

    with Deployment(folder, folder / "run.toml", is_insecure=True) as deployment:
        arguments = list(deployment.server.arguments)
        arguments[arguments.index("--out") + 1] = out
        deployment.server.arguments = arguments
        deployment.server.at_phase = back_up if at_phase else None
        deployment.server.start()
        for name in SITES:
            deployment.add_site(name, folder / f"{name}.toml").start()
        assert deployment.server.wait(SECONDS) == 0, deployment.server.text
        for site in deployment.sites.values():
            assert site.wait(60) == 0, site.text
    assert made or not at_phase


def test_a_backup_made_while_a_run_goes_on_is_restored_elsewhere_and_ends_in_the_same_bits(folder: Path) -> None:
    finish(folder, "runs/server", at_phase=True)
    unpack, move, *_ = commands_under("Restore")
    assert (folder / "server-backup.tar.gz").exists()
    assert not (folder / "runs" / "server.copy").exists()
    for command in (unpack, move):
        typed(command, folder)
    assert len((folder / "runs/restored/rounds.jsonl").read_text().splitlines()) < 4
    finish(folder, "runs/restored")
    assert adapter_sha256(folder / "runs/restored") == adapter_sha256(folder / "runs/server")
