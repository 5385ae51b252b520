"""A client whose examples are private: its ledger, its budget, what it does not tell, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedlora.client.site.limits import allowed_evaluation, allowed_training
from fedlora.client.site.limits_section import LimitsSection
from fedlora.client.worker import interruption
from fedlora.client.worker.client_privacy import PrivacyBudgetSpent
from fedlora.client.worker.ledger import Ledger, Spending
from fedlora.client.worker.own_site import OwnSite
from fedlora.client.worker.trainer_bench import TrainerBench
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.messages import EvaluateReceipt, EvaluateRequest, Failure, InitialiseRequest, Score, TrainRequest
from fedlora.privacy.sampled_steps import SampledSteps, epsilon_of_steps
from fedlora.training.data import load_federated_data
from fedlora.training.trainer import TrainingInterrupted

MakeRun = Callable[..., RunConfig]
DELTA = 1e-5
# The pictures of a client for training, and a round's steps over them.
NUM_EXAMPLES, BATCH, STEPS = 43, 4, 2


def private(vision_run: MakeRun, *, train: dict[str, Any] | None = None, **privacy: Any) -> RunConfig:
    return vision_run(
        train={"steps": STEPS, "batch_size": BATCH, **(train or {})},
        privacy={"unit": "example", "delta": DELTA, "noise_multiplier": 1.0, "clip": 1.0, **privacy},
    )


def bench(config: RunConfig, folder: Path, *, epsilon: float | None = None) -> Workbench:
    site = None if epsilon is None else OwnSite("chalk", epsilon=epsilon)
    return Workbench(config, load_federated_data(config), ledger=Ledger(folder), site=site)


def asked(workbench: Workbench, number: int = 1, run: str = "run") -> TrainRequest:
    return TrainRequest(run, number, 0, 0, 10, 4, workbench.initialise(InitialiseRequest(0)).adapter)


def epsilon(num_trainings: int, multiplier: float = 1.0) -> float:
    steps = SampledSteps(multiplier, STEPS * num_trainings, BATCH, NUM_EXAMPLES)
    return epsilon_of_steps([steps], delta=DELTA)


def test_a_training_is_entered_and_another_process_goes_on_from_there(vision_run: MakeRun, tmp_path: Path) -> None:
    config = private(vision_run)
    first = bench(config, tmp_path)
    first.rehearse("chalk")
    assert not list(tmp_path.iterdir())
    receipts = [first.train("chalk", asked(first, number)) for number in (1, 2)]

    second = bench(config, tmp_path)
    receipts.append(second.train("chalk", asked(second, 2)))
    second.train("chalk", asked(second, 1, run="other"))
    second.train("print", asked(second, 1))

    kind = {"delta": DELTA, "noise_multiplier": 1.0, "num_drawn": BATCH, "num_examples": NUM_EXAMPLES}
    (path,) = [path for path in tmp_path.iterdir() if path.name.startswith("chalk")]
    assert json.loads(path.read_text()) == {
        "client": "chalk",
        "spent": [
            {"run": "run", **kind, "num_steps": 3 * STEPS, "num_trainings": 3},
            {"run": "other", **kind, "num_steps": STEPS, "num_trainings": 1},
        ],
    }
    # What a round done again tells is told a second time: its noise is another.
    assert len({receipt.adapter for receipt in receipts}) == 3


def test_numbers_without_noise_are_not_told(vision_run: MakeRun, tmp_path: Path) -> None:
    workbench = bench(private(vision_run), tmp_path)
    receipt = workbench.train("chalk", asked(workbench))
    assert math.isnan(receipt.loss)
    assert (receipt.withheld, receipt.before, receipt.after) == (("loss", "scores"), None, None)
    assert allowed_training(receipt, LimitsSection(), private(vision_run)).withheld == ("loss", "scores")
    validation = EvaluateRequest("run", 1, 4, 0, 1, False, asked(workbench).adapter, of_validation=True)
    assert workbench.evaluate("chalk", validation).groups == {}


def test_held_out_scores_leave_a_site_only_where_its_file_names_them(vision_run: MakeRun) -> None:
    judged, run = EvaluateReceipt("run", 1, 0, {"any": Score(50, 0.5, 0.5)}), private(vision_run)
    refused = allowed_evaluation(judged, LimitsSection(), run, site="chalk")
    assert isinstance(refused, Failure)
    assert refused.code == "withheld"
    told = allowed_evaluation(judged, LimitsSection(metrics=("scores",)), run, site="chalk")
    assert isinstance(told, EvaluateReceipt)
    assert set(told.groups) == {"chalk"}


def test_a_training_that_is_broken_off_is_entered_whole(vision_run: MakeRun, tmp_path: Path) -> None:
    workbench = bench(private(vision_run), tmp_path)
    interruption.interrupt()
    try:
        with pytest.raises(TrainingInterrupted):
            workbench.train("chalk", asked(workbench))
    finally:
        interruption.begin()
    # That it breaks off, and when, tells of the examples too.
    (entry,) = Ledger(tmp_path).of("chalk")
    assert (entry.num_steps, entry.num_trainings) == (STEPS, 1)


@pytest.mark.parametrize("whose", ["the run's", "the site's"])
def test_a_training_beyond_the_budget_is_not_begun(vision_run: MakeRun, tmp_path: Path, whose: str) -> None:
    most = (epsilon(2) + epsilon(3)) / 2
    is_runs = whose == "the run's"
    config = private(vision_run, epsilon=most if is_runs else None)
    first = bench(config, tmp_path, epsilon=None if is_runs else most)
    # A site's budget is over all runs, and a run's is its own.
    if is_runs:
        first.train("chalk", asked(first, 1, run="other"))
    first.train("chalk", asked(first, 1, run="run" if is_runs else "other"))
    first.train("chalk", asked(first, 2))
    (ledger,) = tmp_path.iterdir()
    before = ledger.read_bytes()

    second = bench(config, tmp_path, epsilon=None if is_runs else most)
    named = "privacy.epsilon" if is_runs else "limits.epsilon, over all runs"
    with pytest.raises(PrivacyBudgetSpent, match=f"has spent an epsilon of .* of .* \\({named}\\)") as spent:
        second.train("chalk", asked(second, 3))

    assert spent.value.code == "privacy_budget"
    assert ledger.read_bytes() == before


def test_epsilon_alone_gives_the_noise_for_all_rounds(vision_run: MakeRun, tmp_path: Path) -> None:
    config = private(vision_run, noise_multiplier=None, epsilon=3.0)
    workbench = bench(config, tmp_path)
    workbench.train("chalk", asked(workbench))
    (entry,) = Ledger(tmp_path).of("chalk")
    rounds = config.federation.rounds
    assert epsilon(rounds, entry.noise_multiplier) <= 3.0 < epsilon(rounds, 0.98 * entry.noise_multiplier)


def test_a_damaged_ledger_is_no_empty_one(vision_run: MakeRun, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.enter("chalk", Spending("run", DELTA, 1.0, BATCH, NUM_EXAMPLES), num_steps=2)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    workbench = bench(private(vision_run, epsilon=3.0), tmp_path)
    with pytest.raises(StoreError, match="and without this ledger nobody knows"):
        workbench.train("chalk", asked(workbench))


def test_a_ledger_that_cannot_be_written_lets_nothing_out(vision_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("a file where a folder is to be")
    workbench = bench(private(vision_run), tmp_path / "ledger")
    with pytest.raises(StoreError, match="cannot"):
        workbench.train("chalk", asked(workbench))


def test_what_has_no_ledger_or_other_steps_is_refused_by_name(vision_run: MakeRun) -> None:
    config = private(vision_run)
    with pytest.raises(ConfigError, match="has no folder for its ledger here"):
        Workbench(config, load_federated_data(config))
    with pytest.raises(ConfigError, match="a trainer of one's own computes its own steps"):
        TrainerBench(config, lambda _client, _run: None, ["chalk"])
