"""Runs that are private to each example: noise, the clients' ledgers over a kill, and a budget that ends the run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployment import deployed
from ended_runs import Killed, adapter_sha256, killed_after
from test_deployment import site_file

from fedlora.common.config import RunConfig
from fedlora.common.run_file import to_toml
from fedlora.privacy.sampled_steps import SampledSteps, epsilon_of_steps
from fedlora.server.record.events import Event, Noted
from fedlora.simulation import SimulationResult
from fedlora.simulation.same_process import run_in_same_process
from fedlora.simulation.simulate import simulate_over
from fedlora.training.data import load_federated_data

MakeRun = Callable[..., RunConfig]
DELTA = 1e-5


def private(vision_run: MakeRun, *, rounds: int, **privacy: Any) -> RunConfig:
    return vision_run(
        run={"name": "tiny"},
        train={"optimizer_state": "keep", "steps": 2, "batch_size": 4},
        federation={"rounds": rounds},
        evaluation={"round_examples": 12},
        data={"test": 0.2},
        privacy={"unit": "example", "delta": DELTA, "clip": 1.0, **privacy},
    )


def simulated(config: RunConfig, folder: Path, **options: Any) -> SimulationResult:
    """Return what a run in this process ends in, which needs no workers to start."""
    return simulate_over(
        load_federated_data(config), config, out=folder, is_own_data=False, engine=run_in_same_process, **options
    )


def ledgers(folder: Path) -> list[dict[str, Any]]:
    """Return what each client has entered; each of them trains in one way only."""
    found = [json.loads(path.read_text()) for path in sorted((folder / "privacy").glob("*.json"))]
    assert [len(ledger["spent"]) for ledger in found] == [1] * len(found)
    return [ledger["spent"][0] for ledger in found]


def epsilon(entry: dict[str, Any], *, num_steps: int) -> float:
    steps = SampledSteps(entry["noise_multiplier"], num_steps, entry["num_drawn"], entry["num_examples"])
    return epsilon_of_steps([steps], delta=DELTA)


def test_a_run_ends_when_the_budget_of_all_is_spent(vision_run: MakeRun, tmp_path: Path) -> None:
    each = SampledSteps(0.8, 2 * 2, 4, 43)
    budget = epsilon_of_steps([each], delta=DELTA) + 0.01
    config = private(vision_run, rounds=5, noise_multiplier=0.8, epsilon=budget)
    events: list[Event] = []

    found = simulated(config, tmp_path / "out", listener=events.append)

    last = found.reports[-1]
    assert (last.round, last.ended_early, last.is_out_of_budget, dict(last.clients)) == (3, True, True, {})
    assert {reason.partition(":")[0] for reason in last.refused.values()} == {"privacy_budget"}
    # The last model is whole, and was judged on all held-out examples.
    assert last.adapter_sha256 == found.reports[2].adapter_sha256
    assert last.held_out is not None
    assert last.held_out.is_complete
    assert [len(report.clients) for report in found.reports] == [0, 3, 3, 0]
    assert "has spent its privacy budget" in str([event for event in events if isinstance(event, Noted)])
    for entry in ledgers(found.folder):
        assert (entry["num_examples"], entry["num_trainings"], entry["num_steps"]) == (43, 2, 4)
        assert epsilon(entry, num_steps=4) <= budget < epsilon(entry, num_steps=6)
    text = (found.folder / "report.html").read_text()
    assert "The run ended early, in round 3 of 5: the clients" in text
    assert "privacy budget is spent." in text

    again = simulated(config, found.folder, resume=True)
    assert adapter_sha256(again.folder) == adapter_sha256(found.folder)
    assert len(again.reports) == len(found.reports)


@pytest.mark.slow  # That a ledger outlives its process is shown by tests/client/test_client_privacy.py too.
def test_noise_for_all_rounds_lasts_over_a_kill_and_nothing_without_noise_is_told(
    vision_run: MakeRun, tmp_path: Path
) -> None:
    config = private(vision_run, rounds=3, epsilon=4.0)
    with pytest.raises(Killed):
        simulated(config, tmp_path, listener=killed_after(1))
    before = ledgers(tmp_path)

    found = simulated(config, tmp_path, resume=True)

    assert [len(report.clients) for report in found.reports] == [0, 3, 3, 3]
    assert not found.reports[-1].ended_early
    after = ledgers(tmp_path)
    assert [entry["num_trainings"] for entry in before] == [1, 1, 1]
    assert [entry["num_trainings"] for entry in after] == [3, 3, 3]
    assert all(epsilon(entry, num_steps=6) <= 4.0 < epsilon(entry, num_steps=7) for entry in after)
    for report in found.reports[1:]:
        for client in report.clients.values():
            assert math.isnan(client.loss)
            assert (client.before, client.after, client.num_tokens) == (None, None, 0)


@pytest.mark.slow  # Its parts are shown by test_rounds_that_end.py and test_client_privacy.py.
def test_sites_keep_to_their_own_budget_and_to_the_runs(vision_run: MakeRun, tmp_path: Path, tiny_digits: Path) -> None:
    one, two, three = (epsilon_of_steps([SampledSteps(0.8, 2 * rounds, 4, 43)], delta=DELTA) for rounds in (1, 2, 3))
    config = private(vision_run, rounds=5, noise_multiplier=0.8, epsilon=(two + three) / 2)
    config = RunConfig.model_validate(
        {**config.model_dump(), "data": {**config.data.model_dump(), "labels": list("012")}}
    )
    (tmp_path / "run.toml").write_text(to_toml(config))
    sites = {
        "chalk": site_file(tmp_path, "chalk", tiny_digits, f"epsilon = {(one + two) / 2}"),
        "pencil": site_file(tmp_path, "pencil", tiny_digits),
        "print": site_file(tmp_path, "print", tiny_digits, "epsilon_per_run = 0.5"),
    }
    with deployed(tmp_path, tmp_path / "run.toml", sites, is_insecure=True) as deployment:
        deployment.sites["print"].wait_for("expected at most limits.epsilon_per_run = 0.5")
        assert deployment.server.wait(600) == 0, deployment.server.text
        deployment.sites["chalk"].wait_for(r"chalk has spent an epsilon of .* \(limits.epsilon, over all runs\)")
        deployment.sites["pencil"].wait_for(r"pencil has spent an epsilon of .* \(privacy.epsilon\)")
        assert "this run has spent an epsilon of" in deployment.sites["pencil"].text
    reports = [json.loads(line) for line in (deployment.out / "rounds.jsonl").read_text().splitlines()]
    assert [sorted(report["clients"]) for report in reports] == [[], ["chalk", "pencil"], ["pencil"], []]
    assert (reports[-1]["ended_early"], reports[-1]["held_out"]) == (True, None)
    assert "ended early" in deployment.server.text
    for name, num_trainings in (("chalk", 1), ("pencil", 2)):
        (entry,) = ledgers(tmp_path / f"{name}.site")
        assert entry["num_trainings"] == num_trainings
