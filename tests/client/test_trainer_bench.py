"""A worker over a script's own trainer: its rounds, its scores, and what of it is refused before it trains."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trainer_scripts as scripts
from safetensors.torch import load, save
from transformers import TrainerCallback, TrainerState

from fedlora.adapters import unpack
from fedlora.adapters.moments import pack_moments
from fedlora.adapters.packed import metadata_of
from fedlora.client.worker import interruption
from fedlora.client.worker.own_site import OwnSite
from fedlora.client.worker.trainer_bench import TrainerBench
from fedlora.client.worker.workbench import Workbench
from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.common.messages import OK, EvaluateRequest, InitialiseRequest, TrainReceipt, TrainRequest
from fedlora.training.data import load_federated_data
from fedlora.training.optimizer_state import MomentsFolder
from fedlora.training.own_trainer.content import content_digest
from fedlora.training.trainer import TrainingInterrupted

MakeRun = Callable[..., RunConfig]
MakeBench = Callable[..., TrainerBench]


@pytest.fixture
def make_bench(chat_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    """Return a function that gives a bench over a script's trainers; keywords are sections of the run."""
    monkeypatch.setenv("TRAINER_OUTPUT", str(tmp_path / "trainer-output"))

    def make(make_trainer: Any = scripts.make_trainer, *, site: OwnSite | None = None, **sections: Any) -> TrainerBench:
        moments = MomentsFolder(tmp_path / "optimizer")
        return TrainerBench(chat_run(**sections), make_trainer, ["north", "south"], site=site, moments=moments)

    return make


def initial_of(bench: TrainerBench | Workbench) -> bytes:
    adapter = bench.initialise(InitialiseRequest(0)).adapter
    assert isinstance(adapter, bytes)
    return adapter


def asked(adapter: object, number: int = 1, **changes: Any) -> TrainRequest:
    given = {"num_rounds": 3, "validation_examples": 20, "adapter": adapter}
    return TrainRequest("run", number, 0, 0, **{**given, **changes})


def rounds_of(bench: TrainerBench, **changes: Any) -> list[TrainReceipt]:
    """Return the receipts of three rounds of a federation of one."""
    receipts, adapter = [], initial_of(bench)
    for number in (1, 2, 3):
        receipts.append(bench.train("north", asked(adapter, number, **changes)))
        adapter = receipts[-1].adapter
    return receipts


class Steps(TrainerCallback):
    """Notes the learning rate and the number of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.numbers: list[int] = []

    def on_optimizer_step(self, _args: Any, state: TrainerState, _control: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])
        self.numbers.append(state.global_step)


def test_three_rounds_learn_and_are_scored_by_tokens(make_bench: MakeBench, chat_run: MakeRun) -> None:
    bench = make_bench(train={"steps": 8})
    bench.rehearse("north")
    described = bench.describe("north")
    assert (described.num_examples, described.num_validation, described.step_examples) == (40, 25, 4)
    receipts = rounds_of(bench)
    assert [(receipt.status, receipt.num_steps) for receipt in receipts] == [(OK, 8)] * 3
    first, last = receipts[0].before, receipts[-1].after
    assert first is not None
    assert last is not None
    assert last.loss < first.loss - 1
    assert last.metric > first.metric + 0.2
    judged = bench.evaluate(
        "north", EvaluateRequest("run", 3, 20, 0, 1, False, receipts[-1].adapter, of_validation=True)
    )
    assert judged.groups == {"north": last}
    batch = scripts.collate([scripts.validation_of("north", chat_run())[place] for place in range(25)])
    every = EvaluateRequest("run", 3, None, 0, 1, False, receipts[-1].adapter, of_validation=True)
    # All but a text's first token are foretold.
    assert bench.evaluate("north", every).groups["north"].num_tokens == int((batch["labels"][:, 1:] != -100).sum())


def test_the_first_adapter_and_the_words_of_an_update_are_those_of_fedloras_own_training(
    make_bench: MakeBench, chat_run: MakeRun
) -> None:
    config = chat_run()
    bench = make_bench(partial(scripts.make_trainer, model=scripts.with_lora(config, lora_dropout=0.3)))
    workbench = Workbench(config, load_federated_data(config))
    assert initial_of(bench) == initial_of(workbench)
    own, ours = bench.describe("north"), workbench.describe("de")
    for what in ("base_model_fingerprint", "fingerprints", "metric_name", "labels", "version", "lora_rank"):
        assert getattr(own, what) == getattr(ours, what), what
    update = bench.train("north", asked(initial_of(bench))).adapter
    assert isinstance(update, bytes)
    assert unpack(update).config == unpack(initial_of(workbench)).config


@pytest.mark.parametrize("state", ["keep", "reset", "shared"])
def test_a_worker_that_is_started_again_goes_on_to_the_last_bit(make_bench: MakeBench, state: str) -> None:
    sections = {"train": {"optimizer_state": state}, "lora": {"dropout": 0.1}}
    whole = make_bench(**sections)
    whole.rehearse("north")
    first = whole.train("north", asked(initial_of(whole), 1))
    adapter, moments = parted(first.adapter)
    second = whole.train("north", asked(adapter, 2, moments=moments))
    again = make_bench(scripts.make_trainer_with_lora, **sections)
    repeated = again.train("north", asked(adapter, 2, moments=moments))
    assert bool(moments) == (state == "shared")
    assert repeated.adapter == second.adapter
    assert (repeated.before, repeated.after, repeated.loss) == (second.before, second.after, second.loss)


def parted(update: object) -> tuple[bytes, bytes]:
    """Return an update's adapter and the moments that come with it, packed."""
    assert isinstance(update, bytes)
    tensors = load(update)
    moments = {key: tensors.pop(key) for key in list(tensors) if "/" in key}
    return save(tensors, metadata_of(update)), pack_moments(moments) if moments else b""


def test_moments_are_kept_from_round_to_round_as_the_run_says(make_bench: MakeBench) -> None:
    updates = {}
    for state in ("keep", "reset"):
        updates[state] = [receipt.adapter for receipt in rounds_of(make_bench(train={"optimizer_state": state}))]
    assert updates["keep"][0] == updates["reset"][0]
    assert updates["keep"][1] != updates["reset"][1]


def test_the_schedule_spans_the_run_and_steps_count_from_the_rounds_start(make_bench: MakeBench) -> None:
    steps = Steps()
    bench = make_bench(partial(scripts.make_trainer, callbacks=[steps], warmup_steps=2), train={"steps": 4})
    rounds_of(bench)
    whole = Steps()
    trainer = make_bench(partial(scripts.make_trainer, callbacks=[whole], warmup_steps=2, max_steps=12))._trainer(
        "north"
    )
    trainer.trainer.train()
    assert steps.rates == whole.rates
    assert steps.numbers == [0, 1, 2, 3] * 3


class Noted(list[Any]):
    """Examples, and the places of those that were taken, in their order."""

    def __init__(self, examples: list[Any]) -> None:
        super().__init__(examples)
        self.taken: list[int] = []

    def __getitem__(self, place: Any) -> Any:
        self.taken.append(place)
        return super().__getitem__(place)


def test_each_round_takes_its_own_examples_and_the_same_ones_when_it_is_done_again(make_bench: MakeBench) -> None:
    noted = Noted([{"input_ids": [5 + place, 6]} for place in range(40)])
    bench = make_bench(partial(scripts.make_trainer, train_dataset=noted, data_seed=3))
    orders = []
    for number in (1, 2, 1):
        noted.taken.clear()
        bench.train("north", asked(initial_of(bench), number))
        orders.append(noted.taken[:12])
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert len(set(orders[0])) == 12


def test_epochs_are_over_the_scripts_own_batches(make_bench: MakeBench) -> None:
    script = partial(scripts.make_trainer, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    bench = make_bench(script, train={"steps": None, "epochs": 0.5, "batch_size": 16})
    assert bench.train("north", asked(initial_of(bench))).num_steps == 5


def test_a_sites_own_limits_end_a_round(make_bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    bench = make_bench(site=OwnSite("north", max_steps=2))
    assert bench.train("north", asked(initial_of(bench))).num_steps == 2
    bench = make_bench(site=OwnSite("north", max_seconds=1e-9))
    assert bench.train("north", asked(initial_of(bench))).num_steps == 1
    assert "ended after 1 of 3 steps: limits.max_seconds is over" in caplog.text


def test_a_round_that_nobody_waits_for_is_left_and_leaves_no_trace(make_bench: MakeBench) -> None:
    expected = make_bench(train={"optimizer_state": "reset"})
    update = expected.train("north", asked(initial_of(expected))).adapter
    bench = make_bench(train={"optimizer_state": "reset"})
    interruption.interrupt()
    try:
        with pytest.raises(TrainingInterrupted, match="left off after 1 of 3 steps"):
            bench.train("north", asked(initial_of(bench)))
    finally:
        interruption.begin()
    assert bench.train("north", asked(initial_of(bench))).adapter == update


def test_a_checkpoint_is_saved_where_the_script_asks_for_one_and_not_for_each_round(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.rehearse("north")
    bench.train("north", asked(initial_of(bench)))
    assert scripts.checkpoints() == []
    bench = make_bench(partial(scripts.make_trainer, save_steps=2))
    bench.rehearse("north")
    bench.train("north", asked(initial_of(bench)))
    assert [folder.name for folder in scripts.checkpoints()] == ["checkpoint-2"]


def test_mixed_precision_is_put_around_the_model_once(make_bench: MakeBench) -> None:
    bench = make_bench(partial(scripts.make_trainer, bf16=True))
    model = bench._trainer("north").trainer.model
    before = model.forward
    rounds_of(bench)
    assert bench._trainer("north").trainer.model.forward == before
    assert not hasattr(model, "_original_forward")


def test_a_metric_of_the_scripts_own_counts(make_bench: MakeBench) -> None:
    metrics = {"PER_token_accuracy": 0.75, "token_accuracy": 0.25}
    bench = make_bench(partial(scripts.make_trainer, compute_metrics=lambda _judged: dict(metrics)))
    judged = bench.train("north", asked(initial_of(bench))).after
    assert judged is not None
    assert judged.metric == 0.25


@pytest.mark.parametrize(
    "loading", [{"dataloader_drop_last": True}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}]
)
def test_each_example_is_judged_however_the_script_loads_its_own(
    make_bench: MakeBench, loading: dict[str, Any]
) -> None:
    scores = []
    for settings in ({}, loading):
        bench = make_bench(partial(scripts.make_trainer, **settings))
        adapter = initial_of(bench)
        requests = [EvaluateRequest("run", 1, num, 0, 1, False, adapter, of_validation=True) for num in (20, None)]
        scores.append([bench.evaluate("north", request).groups["north"] for request in requests])
        args = bench._trainer("north").trainer.args
        assert args.dataloader_drop_last == settings.get("dataloader_drop_last", False)
    assert scores[0] == scores[1]


def test_a_scheduler_that_a_script_sets_is_that_of_each_round(make_bench: MakeBench) -> None:
    steps = Steps()

    def make_trainer(client: str, run: RunConfig) -> Any:
        trainer = scripts.make_trainer(client, run, callbacks=[steps])

        def create_scheduler(_num_training_steps: int, _optimizer: Any = None) -> Any:
            trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, factor=1.0)
            return trainer.lr_scheduler

        trainer.create_scheduler = create_scheduler
        return trainer

    bench = make_bench(make_trainer)
    bench.rehearse("north")
    rounds_of(bench)
    assert set(steps.rates) == {0.02}


def test_examples_of_any_kind_have_a_digest() -> None:
    objects, others = np.array([{"a": 1}, "b"], dtype=object), np.array([{"a": 2}, "b"], dtype=object)
    assert content_digest([objects]) == content_digest([objects.copy()]) != content_digest([others])
    assert content_digest([_holding_itself(1)]) == content_digest([_holding_itself(1)])
    assert content_digest([_holding_itself(1)]) != content_digest([_holding_itself(2)])


def _holding_itself(value: int) -> list[Any]:
    held: list[Any] = [value]
    held.append({"all": held})
    return held


def test_a_loss_that_is_no_number_is_told_as_such(make_bench: MakeBench) -> None:
    bench = make_bench(partial(scripts.make_trainer, compute_loss_func=_nothing))
    with pytest.raises(ModelError, match="the loss of the first step is nan"):
        bench.rehearse("north")


def _nothing(outputs: Any, _labels: Any, **_kwargs: Any) -> torch.Tensor:
    return outputs["logits"].sum() * float("nan")
