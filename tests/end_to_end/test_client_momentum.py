"""Client momentum and LoRA+ in whole runs: the same adapter over workers, deaths and wires, for who sat out too."""

import hashlib
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from deployment import deployed
from test_deployment import site_file

from fedlora.server.record.events import Event, RoundEnded
from fedlora.simulation import SimulationResult, simulate

RunFile = Callable[..., Path]

NAMES = ("chalk", "pencil", "print")
OVERRIDES = (
    "train.client_momentum=0.5",
    "train.b_learning_rate_ratio=2.0",
    "federation.rounds=4",
    "federation.cohort=2",
    "federation.sites=3",
    'data.labels=["0","1","2"]',
    "exchange.precision=float32",
)


class Killed(Exception):  # noqa: N818 (no error: the test's own)
    """The process ends here."""


@pytest.fixture
def run(run_file: RunFile) -> Path:
    """Return the run file of these tests: two of three clients take part in each of four rounds."""
    return run_file(*OVERRIDES)


@pytest.fixture
def uninterrupted(run: Path, tmp_path: Path) -> SimulationResult:
    return simulate(run, out=tmp_path / "one", num_workers=1)


def adapter_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_workers_and_a_kill_change_nothing_and_the_settings_do(
    run: Path, run_file: RunFile, uninterrupted: SimulationResult, tmp_path: Path
) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(run, out=tmp_path / "killed", num_workers=3, listener=kill)
    resumed = simulate(run, out=tmp_path / "killed", num_workers=3, resume=True)
    assert adapter_sha256(resumed.folder) == adapter_sha256(uninterrupted.folder)
    assert [report.bytes_down for report in resumed.reports] == [report.bytes_down for report in uninterrupted.reports]
    others = {"train.client_momentum=0.0": "no momentum", "train.b_learning_rate_ratio=1.0": "no ratio"}
    found = {
        adapter_sha256(simulate(run_file(*OVERRIDES, one), out=tmp_path / name, num_workers=2).folder)
        for one, name in others.items()
    }
    assert len(found | {adapter_sha256(uninterrupted.folder)}) == 3


def test_a_client_that_sat_out_a_round_is_counted_as_sent_both(uninterrupted: SimulationResult) -> None:
    size = (uninterrupted.folder / "rounds" / "0004" / "adapter.safetensors").stat().st_size
    reports = uninterrupted.reports
    for before, report in pairwise(reports[1:]):
        absent = set(report.cohort) - set(before.cohort)
        assert report.bytes_down == (2 + len(absent)) * size
    assert any(report.bytes_down > 2 * size for report in reports[2:])


def test_a_deployment_ends_in_the_adapter_of_the_simulation(
    run: Path, uninterrupted: SimulationResult, tmp_path: Path, tiny_digits: Path
) -> None:
    sites = {name: site_file(tmp_path, name, tiny_digits) for name in NAMES}
    with deployed(tmp_path, run, sites, is_insecure=True) as deployment:
        assert deployment.server.wait(600) == 0, deployment.server.text
    assert adapter_sha256(deployment.out) == adapter_sha256(uninterrupted.folder)
    reports = [json.loads(line) for line in (deployment.out / "rounds.jsonl").read_text().splitlines()]
    assert [report["cohort"] for report in reports] == [list(report.cohort) for report in uninterrupted.reports]
