"""What of a script's own trainer does not fit its run, each in one line and before it trains."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_scripts as scripts
from torch.utils.data import IterableDataset

from fedlora.client.worker.trainer_bench import TrainerBench
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError, DataError, FedloraError, ModelError
from fedlora.training.optimizer_state import MomentsFolder

MakeRun = Callable[..., RunConfig]


class Endless(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Any]:
        return itertools.repeat({"input_ids": [5, 6]})


def _raises(_client: str, _run: RunConfig) -> Any:
    raise KeyError("a secret")


def _exits(_client: str, _run: RunConfig) -> Any:
    raise SystemExit(2)


def _changed(_client: str, run: RunConfig) -> Any:
    trainer = scripts.make_trainer(_client, run)
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] += 1
    return trainer


def _half(client: str, run: RunConfig) -> Any:
    trainer = scripts.make_trainer(client, run)
    trainer.model.bfloat16()
    return trainer


def _with_lora(**changes: Any) -> Any:
    return lambda client, run: scripts.make_trainer(client, run, model=scripts.with_lora(run, **changes))


def _unfrozen(client: str, run: RunConfig) -> Any:
    model = scripts.with_lora(run)
    model.get_base_model().lm_head.weight.requires_grad_(True)
    return scripts.make_trainer(client, run, model=model)


def _ready_optimiser(client: str, run: RunConfig) -> Any:
    trainer = scripts.make_trainer(client, run)
    trainer.create_optimizer()
    return trainer


def _quantised(client: str, run: RunConfig) -> Any:
    trainer = scripts.make_trainer(client, run)
    trainer.model.is_quantized = True
    return trainer


def _script(**changes: Any) -> Any:
    return partial(scripts.make_trainer, **changes)


REFUSED: dict[str, tuple[Any, dict[str, Any], type[FedloraError], str]] = {
    "nothing": (lambda _client, _run: None, {}, ConfigError, "returned NoneType; expected a transformers.Trainer"),
    "error": (_raises, {}, ModelError, "make_trainer raised KeyError: 'a secret'"),
    "exit": (_exits, {}, ModelError, "make_trainer raised SystemExit: 2"),
    "changed": (_changed, {}, ModelError, "the model's lm_head.weight has other values than the run's"),
    "half": (_half, {}, ModelError, r"the model's \S+ is bfloat16 \(.*\), the run's float32"),
    "rank": (_with_lora(r=2), {}, ModelError, r"lora_A.weight is \(2, 32\), the run's \(4, 32\) \(lora.rank = 4\)"),
    "alpha": (_with_lora(lora_alpha=4), {}, ModelError, "acts with 1 B A, the run's with 4 B A"),
    "other LoRA": (
        _with_lora(alora_invocation_tokens=[5]), {}, ModelError, "the model's LoRA has alora_invocation_tokens, which",
    ),
    "layers": (_with_lora(target_modules=["k_proj"]), {}, ModelError, "4 tensors, of k_proj; the run 8, of q_proj"),
    "unfrozen": (_unfrozen, {}, ModelError, "trains base_model.model.lm_head.weight, which the run's adapter does not"),
    "quantised": (_quantised, {}, ConfigError, "the model's weights are quantised"),
    "best": (_script(load_best_model_at_end=True, eval_strategy="steps"), {}, ConfigError, "would send another"),
    "bfloat16": (_script(bf16_full_eval=True), {}, ConfigError, "bf16_full_eval would turn the trained model itself"),
    "float16": (_script(fp16_full_eval=True), {}, ConfigError, "fp16_full_eval would turn the trained model itself"),
    "batch size": (_script(auto_find_batch_size=True), {}, ConfigError, "auto_find_batch_size begins a round again"),
    "optimisers": (_ready_optimiser, {}, ConfigError, "optimizers= are ready ones, which cannot start afresh"),
    "endless": (_script(train_dataset=Endless(), max_steps=1), {}, DataError, "is Endless, which has no length"),
    "empty": (_script(train_dataset=[]), {}, DataError, "train_dataset has no examples"),
    "parts": (_script(eval_dataset={"dev": []}), {}, DataError, "eval_dataset has 'dev'; expected one data set, or"),
    "moments": (_script(optim="adafactor"), {}, ConfigError, '"keep" needs an optimiser of torch .* has Adafactor'),
    "shared": (
        _script(optim="sgd"), {"train": {"optimizer_state": "shared"}}, ConfigError, '"shared" needs .*Adam.* has SGD',
    ),
    "no batch": (
        _script(per_device_train_batch_size=64, dataloader_drop_last=True), {}, DataError,
        "the trainer did no step: 40 examples give no whole batch",
    ),
    "metric": (
        _script(compute_metrics=lambda _judged: {"f1": 1.0}), {}, ConfigError,
        "the run's metric is 'token accuracy', and evaluate.. gives .*eval_f1",
    ),
    "metrics": (
        _script(compute_metrics=lambda _judged: {"a_token_accuracy": 1.0, "b_token_accuracy": 0.0}), {}, ConfigError,
        "gives eval_a_token_accuracy, eval_b_token_accuracy; have compute_metrics give the one that is meant as",
    ),
    "loss only": (_script(prediction_loss_only=True), {}, ConfigError, "with prediction_loss_only the trainer keeps"),
    "proximal": (_script(), {"train": {"proximal_mu": 0.1}}, ConfigError, "train.proximal_mu = 0.1 is of fedlora"),
    "momentum": (_script(), {"train": {"client_momentum": 0.5}}, ConfigError, "client_momentum = 0.5 is of fedlora"),
    "tokens": (_script(), {"federation": {"weighting": "tokens"}}, ConfigError, 'weighting = "tokens" is of fedlora'),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_run_is_refused_before_it_trains(
    chat_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make_trainer, sections, kind, words = REFUSED[case]
    train = {"optimizer_state": "keep", **sections.get("train", {})}
    run = chat_run(**{**sections, "train": train})
    monkeypatch.setenv("TRAINER_OUTPUT", str(tmp_path / "trainer-output"))
    bench = TrainerBench(run, make_trainer, ["north"], moments=MomentsFolder(tmp_path))
    with pytest.raises(kind, match=words) as refused:
        bench.rehearse("north")
    assert "\n" not in str(refused.value)
