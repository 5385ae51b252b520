"""A run with a privacy budget, as a user has it: what it says, how it ends, and that a kill forgets nothing of it."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from interruption import interrupted

from fedlora.privacy.accounting import Release, epsilon_of
from fedlora.server.disk.store import RunFolder

RunFile = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]

PRIVATE = (
    "train.steps=2",
    "federation.weighting=uniform",
    "aggregation.method=fedit",
    "privacy.unit=client",
    "privacy.noise_multiplier=4.0",
    "privacy.clip=1.0",
)


def test_a_run_ends_within_its_budget_and_says_so_wherever_one_looks(run_file: RunFile, fedlora_here: Command) -> None:
    two = epsilon_of([Release(4.0, 2)], delta=1e-5)
    run = run_file(*PRIVATE, "federation.rounds=4", f"privacy.epsilon={two + 0.01}")
    ended = fedlora_here("simulate", run, "--out", "out", "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout + ended.stderr
    assert "the run ended after round 2 of 4: privacy.epsilon" in said
    assert f"epsilon {two:.2f}" in said
    assert "after round 2: another round would pass privacy.epsilon" in said
    again = fedlora_here("simulate", run, "--out", "out", "--resume", "--json")
    outcome = json.loads(again.stdout)
    assert (again.returncode, outcome["rounds"], outcome["ended_early"]) == (0, 2, True)
    assert outcome["epsilon"] == pytest.approx(two)
    assert "the run ended after round 2 of 4" in again.stderr
    page = (run.parent / "out" / "report.html").read_text()
    assert "epsilon says nothing of it" in page
    assert (run.parent / "out" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "attempts"),
    [
        ("spend", [(1, True), (2, True), (3, True)]),
        ("add noise", [(1, True), (2, False), (2, True), (3, True)]),
        ("release", [(1, True), (2, False), (2, True), (3, True)]),
    ],
)
def test_a_run_that_is_killed_has_spent_what_it_had_spent(
    run_file: RunFile, tmp_path: Path, phase: str, attempts: list[tuple[int, bool]]
) -> None:
    run = run_file(*PRIVATE, "federation.rounds=3", "partition.by=iid", "partition.num_clients=2")
    out = tmp_path / "killed"
    assert interrupted(run, out, "--at-phase", phase) == -signal.SIGKILL
    released = RunFolder(out).latest()
    assert released is not None
    assert interrupted(run, out, "--at-phase", "none") == 0
    record = RunFolder(out).privacy()
    assert record is not None
    assert [(each.round, bool(each.adapter_sha256)) for each in record.spent] == attempts
    checkpoint = RunFolder(out).latest()
    assert checkpoint is not None
    assert checkpoint.reports[1].adapter_sha256 == released.stored.sha256
    assert checkpoint.reports[-1].epsilon == epsilon_of([Release(4.0, len(attempts))], delta=1e-5)
