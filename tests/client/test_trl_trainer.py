"""TRL's trainer in a worker, with the model and the data that its users give it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_scripts import LETTERS

from fedlora.client.worker.trainer_bench import TrainerBench
from fedlora.common.config import RunConfig
from fedlora.common.messages import OK, InitialiseRequest, TrainRequest
from fedlora.training.optimizer_state import MomentsFolder

pytest.importorskip("trl", reason="trl is not installed: pip install trl")

MakeRun = Callable[..., RunConfig]


# What TRL says of names that transformers is about to change is between these two.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("has_lora", [False, True])
def test_trls_trainer_learns_in_rounds_and_goes_on_to_the_last_bit(
    chat_run: MakeRun, tmp_path: Path, *, has_lora: bool
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    def make_trainer(client: str, run: RunConfig) -> Any:
        lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        first, second, third = LETTERS[client]
        texts = [pair * (3 + place % 4) for place in range(20) for pair in (first + second, second + third)]
        return SFTTrainer(
            run.model.name,
            args=SFTConfig(
                str(tmp_path / "trl"),
                per_device_train_batch_size=4,
                learning_rate=0.02,
                model_init_kwargs={"dtype": run.model.dtype},
                bf16=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_dict({"text": texts}),
            eval_dataset=Dataset.from_dict({"text": texts[:25]}),
            peft_config=lora if has_lora else None,
        )

    def bench() -> TrainerBench:
        return TrainerBench(run, make_trainer, ["north"], moments=MomentsFolder(tmp_path / "optimizer"))

    run = chat_run(train={"steps": 6, "optimizer_state": "keep"})
    whole = bench()
    whole.rehearse("north")
    receipts, adapter = [], whole.initialise(InitialiseRequest(0)).adapter
    for number in (1, 2):
        receipts.append(whole.train("north", TrainRequest("run", number, 0, 0, 2, 20, adapter)))
        adapter = receipts[-1].adapter
    assert [(receipt.status, receipt.num_steps) for receipt in receipts] == [(OK, 6)] * 2
    first, last = receipts[0].before, receipts[-1].after
    assert first is not None
    assert last is not None
    assert last.loss < first.loss - 0.5
    assert last.metric > first.metric
    assert last.num_tokens > 0
    again = bench().train("north", TrainRequest("run", 2, 0, 0, 2, 20, receipts[0].adapter))
    assert again.adapter == receipts[1].adapter
