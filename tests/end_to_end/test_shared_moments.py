"""Runs whose clients go on with the federation's moments: over workers, a kill, methods, ranks and wires."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from deployment import deployed
from test_deployment import site_file

from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.server.record.events import Event, RoundEnded
from fedlora.simulation import SimulationResult, simulate

MakeRun = Callable[..., RunConfig]

NAMES = ("chalk", "pencil", "print")


class Killed(Exception):  # noqa: N818 (no error: the test's own)
    """The process ends here."""


@pytest.fixture(scope="module")
def config(vision_run: MakeRun) -> RunConfig:
    """Return the run of these tests: two of three clients take part in each of three rounds."""
    return vision_run(
        run={"name": "tiny"},
        data={"labels": ["0", "1", "2"]},
        lora={"dropout": 0.1},
        train={"optimizer_state": "shared"},
        federation={"rounds": 3, "cohort": 2, "sites": 3},
        evaluation={"round_examples": 12, "client_examples": 4},
        exchange={"precision": "float32"},
    )


@pytest.fixture(scope="module")
def uninterrupted(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    return simulate(config, out=tmp_path_factory.mktemp("shared") / "out", num_workers=1)


def adapter_sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_workers_and_a_kill_change_nothing(config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path) -> None:
    def kill(event: Event) -> None:
        if isinstance(event, RoundEnded) and event.report.round == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(config, out=tmp_path, num_workers=3, listener=kill)
    resumed = simulate(config, out=tmp_path, num_workers=3, resume=True)
    assert adapter_sha256(resumed.folder) == adapter_sha256(uninterrupted.folder)
    states = [[report.state_sha256 for report in result.reports] for result in (resumed, uninterrupted)]
    assert states[0] == states[1]
    assert all(states[0][1:])


@pytest.mark.slow
def test_a_deployment_ends_in_the_adapter_of_the_simulation(
    config: RunConfig, uninterrupted: SimulationResult, tmp_path: Path, tiny_digits: Path
) -> None:
    (tmp_path / "run.toml").write_text(to_toml(config))
    sites = {name: site_file(tmp_path, name, tiny_digits) for name in NAMES}
    with deployed(tmp_path, tmp_path / "run.toml", sites, is_insecure=True) as deployment:
        assert deployment.server.wait(600) == 0, deployment.server.text
    assert adapter_sha256(deployment.out) == adapter_sha256(uninterrupted.folder)
