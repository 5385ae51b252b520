"""The moments that clients keep: which round starts from which, and what is damaged or forgotten."""

import os
from pathlib import Path

import pytest
import torch

from fedlora.training.optimizer_state import MomentsFolder, without_factors


def moments(value: float) -> dict[str, torch.Tensor]:
    return {"layer.lora_A.weight/exp_avg": torch.full((2, 3), value), "layer.lora_A.weight/step": torch.tensor(value)}


def value_of(folder: MomentsFolder, client: str, number: int, run: str = "run") -> float | None:
    found = folder.before(run, client, number)
    return float(found["layer.lora_A.weight/step"]) if found else None


def test_a_round_starts_from_the_newest_moments_before_it(tmp_path: Path) -> None:
    folder = MomentsFolder(tmp_path)
    assert value_of(folder, "a", 1) is None
    folder.write("run", "a", 1, moments(1.0))
    folder.write("run", "a", 4, moments(4.0))
    # A client may sit out rounds, and a round may be done again.
    assert [value_of(folder, "a", number) for number in (1, 2, 4, 5, 9)] == [None, 1.0, 1.0, 4.0, 4.0]


def test_clients_and_runs_have_their_own(tmp_path: Path) -> None:
    folder = MomentsFolder(tmp_path)
    folder.write("run", "a", 1, moments(1.0))
    assert value_of(folder, "b", 2) is None
    assert value_of(folder, "a", 2, run="other") is None


def test_only_the_last_three_are_kept(tmp_path: Path) -> None:
    """So that the last but one can be done again, where the server finds its adapter damaged."""
    folder = MomentsFolder(tmp_path)
    for number in range(1, 6):
        folder.write("run", "a", number, moments(number))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert [value_of(folder, "a", number) for number in (4, 5)] == [3.0, 4.0]


def test_a_run_that_has_gone_back_starts_from_nothing_that_it_left_behind(tmp_path: Path) -> None:
    folder = MomentsFolder(tmp_path)
    for number in (1, 8, 9, 10):
        folder.write("run", "a", number, moments(number))
    folder.write("run", "a", 4, moments(4.5))
    assert [value_of(folder, "a", number) for number in (5, 11)] == [4.5, 4.5]


def test_a_damaged_file_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = MomentsFolder(tmp_path)
    folder.write("run", "a", 1, moments(1.0))
    folder.write("run", "a", 2, moments(2.0))
    newest = max(tmp_path.rglob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:20])
    assert value_of(folder, "a", 3) == 1.0
    assert "older moments are taken" in caplog.text


def test_the_moments_of_what_is_no_factor_are_told_apart() -> None:
    beside = {"base_model.model.head.weight/exp_avg": torch.ones(2), "l.lora_magnitude_vector/step": torch.tensor(1.0)}
    factors = {"l.lora_A.weight/exp_avg": torch.ones(2, 2), "e.lora_embedding_B/exp_avg_sq": torch.ones(2, 2)}
    assert without_factors({**beside, **factors}) == beside


def test_moments_of_the_runs_that_were_here_last_stay_and_those_of_older_ones_go(tmp_path: Path) -> None:
    folder = MomentsFolder(tmp_path)
    for number in range(8):
        folder.write(f"run-{number}", "north", 1, moments(0.0))
        os.utime(next((tmp_path / f"run-{number}").glob("*/*")), ns=(number, number))
    folder.write("run-0", "north", 2, moments(0.0))
    folder.write("run-8", "north", 1, moments(0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"run-{number}" for number in (0, *range(2, 9)))
    assert value_of(folder, "north", 3, run="run-0") == 0
