"""The workbench's answers: what a client holds, its training, and the scores of the held-out set."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedlora.adapters import pack, unpack
from fedlora.client.worker.own_site import OwnSite
from fedlora.client.worker.source import WorkbenchSource
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import AdapterError, ConfigError, DataError, RunError
from fedlora.common.messages import LOSS_NOT_FINITE, OK, EvaluateRequest, InitialiseRequest, TrainRequest
from fedlora.methods import Method
from fedlora.models.base_model import BaseModel, fingerprint_of
from fedlora.training.data import Examples, FederatedData, federated_data_from, load_federated_data
from fedlora.training.data.examples import ClientData
from fedlora.training.optimizer_state import MomentsFolder
from fedlora.training.tasks import ImageClassification

MakeRun = Callable[..., RunConfig]
MakeBench = Callable[..., Workbench]


@pytest.fixture
def make_bench(vision_run: MakeRun) -> MakeBench:
    """Return a function that gives a workbench over a run with changed sections."""

    def make(**sections: dict[str, object]) -> Workbench:
        config = vision_run(**sections)
        return Workbench(config, load_federated_data(config))

    return make


def initial_of(workbench: Workbench) -> bytes:
    return workbench.initialise(InitialiseRequest(0)).adapter


def training(adapter: bytes, *, number: int = 1, validation_examples: int = 4) -> TrainRequest:
    return TrainRequest("run", number, 2, 0, 10, validation_examples, adapter)


def evaluation(
    adapter: bytes, *, num_examples: int | None = None, shard: int = 0, num_shards: int = 1, predict: bool = False
) -> EvaluateRequest:
    return EvaluateRequest("run", 3, num_examples, shard, num_shards, predict, adapter)


def test_a_client_says_what_it_holds(make_bench: MakeBench, tiny_vision_model: Path) -> None:
    described = make_bench(data={"validation": 0.25}).describe("pencil")
    assert described.client == "pencil"
    assert (described.num_examples, described.num_validation, described.num_held_out) == (36, 12, 36)
    assert described.labels == ("0", "1", "2")
    assert described.metric_name == "accuracy"
    assert described.base_model == str(tiny_vision_model)
    assert described.base_model_fingerprint.startswith("sha256:")


def test_moments_that_are_on_another_machine_are_missed_aloud(
    vision_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = vision_run(train={"optimizer_state": "keep", "steps": 1})
    data = load_federated_data(config)
    here, there = (Workbench(config, data, moments=MomentsFolder(tmp_path / name)) for name in ("here", "there"))
    for number in (1, 2):
        here.train("chalk", training(initial_of(here), number=number))
    assert not caplog.records
    there.train("chalk", training(initial_of(there), number=2))
    assert "there has no client's moments from before round 2, and optimisers start afresh" in caplog.text


def test_a_factor_that_a_round_does_not_train_keeps_its_moments(vision_run: MakeRun, tmp_path: Path) -> None:
    config = vision_run(aggregation={"method": "rolora"}, train={"optimizer_state": "keep", "steps": 2})
    moments = MomentsFolder(tmp_path)
    bench = Workbench(config, load_federated_data(config), moments=moments)
    assert isinstance(config.aggregation, Method)
    for number in (1, 2, 3):
        trains = config.aggregation.plan(number).trains
        assert bench.train("chalk", replace(training(initial_of(bench), number=number), trains=trains)).status == OK
    kept = moments.before("run", "chalk", 4)
    steps = {
        factor: {float(kept[key]) for key in kept if key.endswith(f"lora_{factor}.weight/step")} for factor in "AB"
    }
    assert steps == {"A": {2.0}, "B": {4.0}}


def test_a_sites_own_test_set_that_is_emptied_is_counted_and_not_refused(chat_run: MakeRun) -> None:
    config = chat_run(task={"max_length": 12}, data={"validation": 0.0})
    long, short = ("a" * 30, "b" * 30), ("a", "b")
    data = federated_data_from({"own": [long, *[short] * 5]}, [long, long], kind="causal_lm", validation=0.0)
    described = Workbench(config, data, site=OwnSite("own")).describe("own")
    assert described.fates == {"training": {"too_long": 1}, "test": {"too_long": 2}}
    assert (described.num_examples, described.num_held_out) == (5, 0)
    with pytest.raises(DataError, match=r"data\.test: all 2 test examples are left out: longer than task"):
        Workbench(config, data).describe("own")


def test_every_worker_gives_the_same_first_adapter_whatever_was_drawn_before(make_bench: MakeBench) -> None:
    torch.manual_seed(1)
    first = initial_of(make_bench())
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert initial_of(make_bench()) == first
    assert torch.equal(torch.get_rng_state(), state)
    other = make_bench(run={"seed": 1})
    assert other.initialise(InitialiseRequest(1)).adapter != first


def test_a_worker_of_another_seed_does_not_begin_the_run(make_bench: MakeBench) -> None:
    with pytest.raises(ConfigError, match="the run's seed is 5"):
        make_bench().initialise(InitialiseRequest(5))


def test_the_first_adapter_stays_the_first_when_the_worker_has_trained(make_bench: MakeBench) -> None:
    workbench = make_bench()
    initial = initial_of(workbench)
    workbench.train("chalk", training(initial))
    assert initial_of(workbench) == initial


def test_a_training_receipt_says_whose_it_is_and_what_was_done(make_bench: MakeBench) -> None:
    workbench = make_bench(train={"steps": 8})
    initial = initial_of(workbench)
    receipt = workbench.train("print", training(initial, number=3))
    assert (receipt.run, receipt.round, receipt.attempt, receipt.client) == ("run", 3, 2, "print")
    assert (receipt.status, receipt.num_examples, receipt.num_steps) == (OK, 43, 8)
    assert receipt.before is not None
    assert receipt.after is not None
    assert receipt.before.num_examples == receipt.after.num_examples == 4
    assert receipt.after.loss < receipt.before.loss
    assert receipt.seconds.keys() == {"forward", "backward", "optimizer", "training", "validation"}
    assert receipt.adapter != initial
    assert {path: pair.shapes() for path, pair in unpack(receipt.adapter).layers.items()} == {
        path: pair.shapes() for path, pair in unpack(initial).layers.items()
    }


def test_a_clients_update_does_not_depend_on_who_was_trained_before_it(make_bench: MakeBench) -> None:
    sections = {"lora": {"dropout": 0.2}}
    alone, busy = make_bench(**sections), make_bench(**sections)
    initial = initial_of(alone)
    expected = alone.train("pencil", training(initial))

    first = busy.train("chalk", training(initial))
    busy.evaluate("chalk", evaluation(first.adapter))
    found = busy.train("pencil", training(initial))

    assert found.adapter == expected.adapter
    assert (found.loss, found.before, found.after) == (expected.loss, expected.before, expected.after)
    assert busy.train("chalk", training(initial)).adapter == first.adapter


def test_rounds_and_clients_draw_other_batches(make_bench: MakeBench) -> None:
    workbench = make_bench()
    initial = initial_of(workbench)
    updates = {
        workbench.train(client, training(initial, number=number)).adapter
        for client in ("chalk", "print")
        for number in (1, 2)
    }
    assert len(updates) == 4


def test_how_many_validation_examples_are_judged_does_not_change_the_update(make_bench: MakeBench) -> None:
    workbench = make_bench(lora={"dropout": 0.2})
    initial = initial_of(workbench)
    with_some, with_none = (workbench.train("chalk", training(initial, validation_examples=n)) for n in (3, 0))
    assert with_some.adapter == with_none.adapter
    assert with_none.before is None
    assert with_none.after is None


def test_a_loss_that_is_no_number_is_answered_without_an_adapter(make_bench: MakeBench) -> None:
    workbench = make_bench(train={"learning_rate": 1e30})
    initial = initial_of(workbench)
    receipt = workbench.train("chalk", training(initial))
    assert receipt.status == LOSS_NOT_FINITE
    assert receipt.adapter == b""
    assert receipt.before is not None
    assert receipt.after is None
    assert np.isfinite(workbench.evaluate("chalk", evaluation(initial)).groups["chalk"].loss)


def test_an_adapter_of_a_larger_rank_is_refused(make_bench: MakeBench) -> None:
    other = initial_of(make_bench(lora={"rank": 8, "alpha": 32}))
    workbench = make_bench()
    for answer in (
        lambda: workbench.train("chalk", training(other)),
        lambda: workbench.evaluate("chalk", evaluation(other)),
    ):
        with pytest.raises(AdapterError, match=r"the run has \(4, 32\)"):
            answer()


def test_shards_divide_the_held_out_set_and_their_scores_add_up(make_bench: MakeBench) -> None:
    workbench = make_bench()
    adapter = workbench.train("chalk", training(initial_of(workbench))).adapter
    whole = workbench.evaluate("chalk", evaluation(adapter, predict=True))
    parts = [
        workbench.evaluate("chalk", evaluation(adapter, shard=shard, num_shards=5, predict=True)) for shard in range(5)
    ]

    predictions = [pair for part in parts for pair in part.predictions.items()]
    assert sorted(predictions) == sorted(whole.predictions.items())
    assert sorted(position for position, _ in predictions) == list(range(36))
    assert (whole.run, whole.round, [part.shard for part in parts]) == ("run", 3, [0, 1, 2, 3, 4])
    for group, score in whole.groups.items():
        scores = [part.groups[group] for part in parts if group in part.groups]
        total = sum(part.num_examples for part in scores)
        assert total == score.num_examples == 12
        for name in ("loss", "metric"):
            mean = sum(getattr(part, name) * part.num_examples for part in scores) / total
            assert mean == pytest.approx(getattr(score, name), abs=1e-5)


def test_scores_equal_those_of_the_predictions(make_bench: MakeBench, vision_run: MakeRun) -> None:
    workbench, data = make_bench(), load_federated_data(vision_run())
    judged = workbench.evaluate("chalk", evaluation(initial_of(workbench), predict=True))
    predicted = np.array([judged.predictions[position] for position in range(len(data.test))])
    assert judged.groups.keys() == {"chalk", "pencil", "print"}
    for group, score in judged.groups.items():
        chosen = data.test.groups == group
        assert score.metric == pytest.approx(float((predicted == data.test.labels)[chosen].mean()))


def test_a_budget_is_spent_in_equal_parts_by_group(make_bench: MakeBench) -> None:
    workbench = make_bench()
    initial = initial_of(workbench)
    judged = workbench.evaluate("chalk", evaluation(initial, num_examples=10))
    assert sorted(score.num_examples for score in judged.groups.values()) == [3, 3, 4]
    assert judged.predictions == {}
    assert workbench.evaluate("chalk", evaluation(initial, num_examples=0)).groups == {}
    everything = workbench.evaluate("chalk", evaluation(initial, num_examples=1000))
    assert sum(score.num_examples for score in everything.groups.values()) == 36


def test_more_shards_than_examples_leave_some_without(make_bench: MakeBench) -> None:
    workbench = make_bench()
    initial = initial_of(workbench)
    shards = [
        workbench.evaluate("chalk", evaluation(initial, num_examples=3, shard=shard, num_shards=5, predict=True))
        for shard in range(5)
    ]
    assert [len(shard.predictions) for shard in shards] == [1, 1, 1, 0, 0]
    assert shards[-1].groups == {}


def test_a_run_without_held_out_set_has_no_scores(make_bench: MakeBench) -> None:
    workbench = make_bench(data={"test": 0.0, "validation": 0.0})
    initial = initial_of(workbench)
    assert workbench.evaluate("chalk", evaluation(initial)).groups == {}
    assert workbench.train("chalk", training(initial)).after is None


def test_texts_train_and_are_judged(text_run: MakeRun) -> None:
    words = ["good", "great", "bad", "awful"] * 6
    labels = np.array([0, 0, 1, 1] * 6)
    examples = Examples(words, labels, np.full(24, "reviews"))
    data = FederatedData(("up", "down"), {"reader": ClientData(examples, examples.take([0, 2]))}, examples, "0")
    workbench = Workbench(text_run(train={"steps": 20, "learning_rate": 0.02}), data)
    receipt = workbench.train("reader", training(initial_of(workbench)))
    assert workbench.evaluate("chalk", evaluation(receipt.adapter)).groups["reviews"].metric == 1.0


class Perceptron(nn.Module):
    """A user's own model."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.hidden = nn.Linear(64, 32)
        self.classifier = nn.Linear(32, 3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.relu(self.hidden(self.features(pixel_values))))
        return logits


def test_a_users_own_model_trains_its_named_layers_and_head(vision_run: MakeRun) -> None:
    torch.manual_seed(0)
    module = Perceptron()
    task = ImageClassification(mean=(0.5,), std=(0.25,))
    base = BaseModel(module, ("classifier",), task, None, fingerprint_of(module))
    config = vision_run(lora={"target_modules": ["hidden"], "rank": 2}, train={"steps": 30, "learning_rate": 0.02})
    workbench = Workbench(config, load_federated_data(config), base)
    receipt = workbench.train("chalk", training(initial_of(workbench)))

    adapter = unpack(receipt.adapter)
    assert set(adapter.layers) == {"hidden"}
    assert set(adapter.dense) == {"classifier.weight", "classifier.bias"}
    assert pack(adapter) == receipt.adapter
    assert receipt.after is not None
    assert receipt.before is not None
    assert receipt.after.loss < receipt.before.loss
    assert workbench.evaluate("chalk", evaluation(receipt.adapter)).groups["chalk"].metric > 0.8
    assert workbench.describe("chalk").base_model_fingerprint == base.fingerprint


def test_a_worker_takes_one_thread(vision_run: MakeRun) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        WorkbenchSource("key", vision_run()).load()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


def test_a_client_of_a_smaller_rank_trains_as_a_worker_of_that_rank_would(make_bench: MakeBench) -> None:
    """Zeros fill the worker's pairs, get no gradient, and do not come back."""
    small_bench = make_bench(lora={"rank": 2, "alpha": 8, "dropout": 0.2}, train={"weight_decay": 0.01})
    large_bench = make_bench(lora={"rank": 4, "alpha": 16, "dropout": 0.2}, train={"weight_decay": 0.01})
    initial = initial_of(small_bench)
    large_bench.train("print", training(initial_of(large_bench)))

    expected = unpack(small_bench.train("chalk", training(initial)).adapter)
    found = unpack(large_bench.train("chalk", training(initial)).adapter)
    for path, layer in expected.layers.items():
        assert layer.rank == found.layers[path].rank == 2
        assert layer.scaling == found.layers[path].scaling == 4.0
        torch.testing.assert_close(found.layers[path].A, layer.A, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.layers[path].B, layer.B, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("trains", "frozen"), [(("B",), "A"), (("A",), "B")])
def test_a_factor_that_is_not_trained_stays_and_does_not_travel_back(
    make_bench: MakeBench, trains: tuple[Literal["A", "B"], ...], frozen: str
) -> None:
    workbench = make_bench()
    start = unpack(workbench.train("print", training(initial_of(workbench))).adapter)
    receipt = workbench.train("chalk", replace(training(pack(start)), trains=trains))
    with pytest.raises(AdapterError, match=f"no lora_{frozen}"):
        unpack(receipt.adapter)
    update = unpack(receipt.adapter, without=frozen, frozen=start)
    for path, layer in update.layers.items():
        assert torch.equal(getattr(layer, frozen), getattr(start.layers[path], frozen))
        assert not torch.equal(getattr(layer, trains[0]), getattr(start.layers[path], trains[0]))
    assert not torch.equal(update.dense["classification_head.weight"], start.dense["classification_head.weight"])
    with_both = workbench.train("chalk", training(pack(start)))
    assert len(receipt.adapter) < len(with_both.adapter)


def test_a_later_round_goes_on_with_the_change_since_the_former_adapter(make_bench: MakeBench) -> None:
    plain, ours = make_bench(), make_bench(train={"client_momentum": 0.5})
    initial = initial_of(ours)
    first = ours.train("print", training(initial))
    assert first.adapter == plain.train("print", training(initial)).adapter
    assert isinstance(first.adapter, bytes)
    second = replace(training(first.adapter, number=2), former=initial)
    assert ours.train("print", second).adapter == ours.train("print", second).adapter
    assert ours.train("print", second).adapter != plain.train("print", second).adapter
    with pytest.raises(RunError, match=r"round 2 came without the adapter of the round before, which train"):
        ours.train("print", training(first.adapter, number=2))
