"""What `fedlora plan` says of a run whose examples are private: noise, epsilon, and for how many rounds it lasts."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.privacy.sampled_steps import SampledSteps, epsilon_of_steps


@pytest.fixture
def run_file(tmp_path: Path, tiny_vision_model: Path, tiny_digits: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f'[run]\nname = "plans"\n[model]\nname = "{tiny_vision_model}"\n[task]\nimage_size = 16\n'
        f'[data]\npath = "{tiny_digits}"\n[train]\nsteps = 2\nbatch_size = 4\n[federation]\nrounds = 5\n'
        '[privacy]\nunit = "example"\nclip = 1.0\n'
    )
    return path


def words_of(done: Any) -> str:
    assert done.code == 0, done.err
    return " ".join(done.out.split())


def test_the_noise_for_a_budget_is_told(fedlora: Callable[..., Any], run_file: Path) -> None:
    words = words_of(fedlora("plan", run_file, "--set", "privacy.epsilon=3.0"))
    assert "privacy of chalk, pencil, print (43 examples): noise_multiplier" in words
    told = re.search(r"5 rounds of 2 steps would spend an epsilon of ([0-9.]+) at a delta of 1e-05", words)
    assert told is not None
    assert 2.9 < float(told[1]) <= 3.0
    assert "for the gradients of the single examples of a forward pass" in words


def test_a_budget_that_does_not_last_is_told(fedlora: Callable[..., Any], run_file: Path) -> None:
    whole = epsilon_of_steps([SampledSteps(0.8, 10, 4, 43)], delta=1e-5)
    budget = epsilon_of_steps([SampledSteps(0.8, 4, 4, 43)], delta=1e-5) + 0.01
    settings = ["--set", "privacy.noise_multiplier=0.8", "--set", f"privacy.epsilon={budget}"]
    words = words_of(fedlora("plan", run_file, *settings))
    assert f"would spend an epsilon of {whole:.3g} at a delta of 1e-05, and its budget" in words
    assert f"its budget of {budget:g} is for 2 of them" in words


def test_of_data_that_lie_elsewhere_so_many_are_assumed(fedlora: Callable[..., Any], run_file: Path) -> None:
    settings = [
        "--set",
        "privacy.noise_multiplier=2.0",
        "--set",
        "data.path=nowhere.npz",
        "--set",
        "data.labels=['a', 'b']",
    ]
    words = words_of(fedlora("plan", run_file, *settings))
    assert "privacy of a client (1,000 examples): noise_multiplier 2;" in words
    assert "1,000 examples of a client are assumed for its privacy" in words
