"""Client momentum and LoRA+ in whole runs: the same adapter over workers, deaths and wires, for who sat out too."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from deployment import deployed
from ended_runs import Killed, adapter_sha256, killed_after
from test_deployment import site_file

from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.server.sites import ForgetfulGrid
from fedlora.simulation import SimulationResult, same_process, simulate
from fedlora.simulation.same_process import SameProcessGrid
from fedlora.simulation.simulate import simulate_over
from fedlora.training.data import load_federated_data

MakeRun = Callable[..., RunConfig]

NAMES = ("chalk", "pencil", "print")


@pytest.fixture(scope="module")
def config(vision_run: MakeRun) -> RunConfig:
    """Return the run of these tests: two of three clients take part in each of three rounds."""
    return vision_run(
        run={"name": "tiny"},
        data={"labels": ["0", "1", "2"]},
        lora={"dropout": 0.1},
        train={"client_momentum": 0.5, "b_learning_rate_ratio": 2.0},
        federation={"rounds": 3, "cohort": 2, "sites": 3},
        evaluation={"round_examples": 12, "client_examples": 4},
        exchange={"precision": "float32"},
    )


@pytest.fixture(scope="module")
def uninterrupted(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    return simulate(config, out=tmp_path_factory.mktemp("momentum") / "out", num_workers=1)


def test_workers_and_a_kill_change_nothing(config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        simulate(config, out=tmp_path, num_workers=3, listener=killed_after(2))
    resumed = simulate(config, out=tmp_path, num_workers=3, resume=True)
    assert adapter_sha256(resumed.folder) == adapter_sha256(uninterrupted.folder)
    assert [report.bytes_down for report in resumed.reports] == [report.bytes_down for report in uninterrupted.reports]


def test_a_client_that_sat_out_a_round_is_counted_as_sent_both(uninterrupted: SimulationResult) -> None:
    size = (uninterrupted.folder / "rounds" / "0003" / "adapter.safetensors").stat().st_size
    reports = uninterrupted.reports
    for before, report in pairwise(reports[1:]):
        absent = set(report.cohort) - set(before.cohort)
        assert report.bytes_down == (2 + len(absent)) * size
    assert any(report.bytes_down > 2 * size for report in reports[2:])


class Forgetful(SameProcessGrid, ForgetfulGrid):
    """Flower's own nodes, of which each message is for a process of its own."""


def test_clients_that_keep_nothing_are_counted_as_sent_both(
    config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(same_process, "SameProcessGrid", Forgetful)
    data = load_federated_data(config)
    found = simulate_over(data, config, out=tmp_path / "out", engine=same_process.run_in_same_process)
    assert adapter_sha256(found.folder) == adapter_sha256(uninterrupted.folder)
    size = (found.folder / "rounds" / "0003" / "adapter.safetensors").stat().st_size
    assert [report.bytes_down // size for report in found.reports] == [0, 2, 4, 4]


@pytest.mark.slow  # The kill matrix has client momentum too, with everybody in every round.
def test_a_deployment_ends_in_the_adapter_of_the_simulation(
    config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path, tiny_digits: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(config))
    sites = {name: site_file(tmp_path, name, tiny_digits) for name in NAMES}
    with deployed(tmp_path, tmp_path / "run.toml", sites, is_insecure=True) as deployment:
        assert deployment.server.wait(600) == 0, deployment.server.text
    assert adapter_sha256(deployment.out) == adapter_sha256(uninterrupted.folder)
    reports = [json.loads(line) for line in (deployment.out / "rounds.jsonl").read_text().splitlines()]
    assert [report["cohort"] for report in reports] == [list(report.cohort) for report in uninterrupted.reports]
