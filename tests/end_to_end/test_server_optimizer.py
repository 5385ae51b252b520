"""Runs whose server steps on from what a round's updates become, as users have them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.common.run_file import parse_run
from fedlora.server.record.events import Event, RoundEnded
from fedlora.simulation import SimulationResult, simulate

MakeRun = Callable[..., RunConfig]


class StoppedError(Exception):
    pass


def stop_after_round_2(event: Event) -> None:
    if isinstance(event, RoundEnded) and event.report.round == 2:
        raise StoppedError


@pytest.fixture
def run(vision_run: MakeRun) -> Callable[..., RunConfig]:
    def make(*overrides: str) -> RunConfig:
        base = vision_run(federation={"rounds": 3}, train={"steps": 2}, evaluation={"round_examples": 6})
        return parse_run(base.model_dump(mode="json"), overrides)

    return make


def digest(result: SimulationResult) -> str:
    return hashlib.sha256((result.folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("settings", ["server_optimizer=yogi", "server_optimizer=momentum server_acts_on=product"])
def test_a_run_that_is_stopped_or_whose_state_is_damaged_ends_in_the_same_adapter(
    run: Callable[..., RunConfig], tmp_path: Path, settings: str
) -> None:
    config = run(*(f"federation.{setting}" for setting in settings.split()))
    whole = simulate(config, out=tmp_path / "whole", num_workers=2)
    with pytest.raises(StoppedError):
        simulate(config, out=tmp_path / "stopped", num_workers=1, listener=stop_after_round_2)
    if "yogi" in settings:
        (tmp_path / "stopped" / "rounds" / "0002" / "state.safetensors").write_bytes(b"damaged")
    again = simulate(config, out=tmp_path / "stopped", num_workers=1, resume=True)
    assert digest(again) == digest(whole)
    assert again.reports[-1].state_sha256 == whole.reports[-1].state_sha256 != ""
    page = (whole.folder / "report.html").read_text()
    assert "Then the server&#39;s optimiser stepped (" in page
    assert f"server&#39;s {config.federation.server_optimizer}" in page


def test_a_run_without_one_is_that_of_a_step_of_just_the_change(run: Callable[..., RunConfig], tmp_path: Path) -> None:
    plain = simulate(run(), out=tmp_path / "plain", num_workers=1)
    still = simulate(
        run("federation.server_optimizer=momentum", "federation.server_momentum=0.0"),
        out=tmp_path / "still",
        num_workers=1,
    )
    moving = simulate(run("federation.server_optimizer=momentum"), out=tmp_path / "moving", num_workers=1)
    assert digest(plain) == digest(still) != digest(moving)
    assert plain.reports[-1].state_sha256 == ""
    assert not list(plain.folder.glob("rounds/*/state.safetensors"))
    assert plain.reports[1].adapter_sha256 == moving.reports[1].adapter_sha256
