"""A run whose server steps on from what a round's updates become, as a user has it."""

import hashlib
import html
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlora.common.config import RunConfig
from fedlora.server.record.events import Event, RoundEnded
from fedlora.simulation import SimulationResult, simulate

MakeRun = Callable[..., RunConfig]


class StoppedError(Exception):
    pass


def stop_after_round_2(event: Event) -> None:
    if isinstance(event, RoundEnded) and event.report.round == 2:
        raise StoppedError


def digest(result: SimulationResult) -> str:
    return hashlib.sha256((result.folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_it_is_simulated_reported_and_resumed_over_any_number_of_workers(vision_run: MakeRun, tmp_path: Path) -> None:
    settings = {"rounds": 3, "server_optimizer": "momentum", "server_acts_on": "product"}
    config = vision_run(federation=settings, train={"steps": 2}, evaluation={"round_examples": 6})
    whole = simulate(config, out=tmp_path / "whole", num_workers=2)
    with pytest.raises(StoppedError):
        simulate(config, out=tmp_path / "stopped", num_workers=1, listener=stop_after_round_2)
    again = simulate(config, out=tmp_path / "stopped", num_workers=1, resume=True)
    assert digest(again) == digest(whole)
    assert again.reports[-1].state_sha256 == whole.reports[-1].state_sha256 != ""
    page = html.unescape((whole.folder / "report.html").read_text())
    assert "s optimiser stepped (momentum, on the product): in the last round the products" in page
    assert "server's momentum" in page
