"""What a site's ledger tells its owner: run by run, in all, and on the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.cli.ledger_view import ledger_lines
from fedlora.client.site.spent import spent_in_all, spent_in_run
from fedlora.client.site.state import SiteState
from fedlora.client.worker.ledger import LEDGER_FOLDER, Ledger, Spending
from fedlora.privacy.sampled_steps import SampledSteps, epsilon_of_steps


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the folder of a site that has taken part in two runs."""
    folder = tmp_path / "north.site"
    ledger = Ledger(folder / LEDGER_FOLDER)
    for run, delta, num_trainings in (("one", 1e-5, 3), ("two", 1e-6, 1)):
        for _ in range(num_trainings):
            ledger.enter("north", Spending(run, delta, 2.0, 8, 100), num_steps=5)
    return folder


def epsilon(num_steps: int, delta: float) -> float:
    return epsilon_of_steps([SampledSteps(2.0, num_steps, 8, 100)], delta=delta)


def test_each_run_and_all_together_are_told_at_their_delta(state: Path) -> None:
    found = spent_in_all(state, "north")
    assert found is not None
    assert [(run.run, run.num_trainings, run.delta) for run in found.runs] == [("one", 3, 1e-5), ("two", 1, 1e-6)]
    assert [run.epsilon for run in found.runs] == [epsilon(15, 1e-5), epsilon(5, 1e-6)]
    assert (found.epsilon, found.delta) == (epsilon(20, 1e-6), 1e-6)
    assert spent_in_run(state, "north", "three") is None
    assert spent_in_all(state, "south") is None


def test_of_a_simulation_the_client_is_named_of_which_most_is_told(state: Path) -> None:
    ledger = Ledger(state / LEDGER_FOLDER)
    assert list(ledger_lines(state.parent)) == []
    ledger.enter("south", Spending("one", 1e-5, 2.0, 8, 40), num_steps=50)
    ((name, words),) = ledger_lines(state)
    told = epsilon_of_steps([SampledSteps(2.0, 50, 8, 40)], delta=1e-5)
    assert (name, words) == (
        "privacy",
        f"an epsilon of {told:.3g} (delta 1e-05) of an example at south, the most of all",
    )
    assert ledger.clients() == ["north", "south"]


def test_the_status_of_a_site_says_what_is_spent(fedlora: Callable[..., Any], state: Path, tmp_path: Path) -> None:
    path = tmp_path / "north.toml"
    path.write_text('[site]\nname = "north"\n[data]\npath = "north.csv"\n[limits]\nepsilon = 8.0\n')
    with SiteState(state):
        done, as_json = (
            fedlora("client", "status", "--site", path),
            fedlora("client", "status", "--site", path, "--json"),
        )
    assert done.code == 0
    assert f"run one: an epsilon of {epsilon(15, 1e-5):.3g} is spent (delta 1e-05)" in done.out
    assert f"all runs together: an epsilon of {epsilon(20, 1e-6):.3g} of 8 is spent (delta 1e-06)" in done.out
    assert json.loads(as_json.out)["spent"]["epsilon"] == epsilon(20, 1e-6)
