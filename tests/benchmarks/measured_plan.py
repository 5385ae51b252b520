"""Predict and measure the memory of one client's training: python measured_plan.py CASE NUM_STEPS ANSWER.json

CASE is a run as JSON, in full. The step is predicted from config.json alone, as `fedlora plan` does. Then the model is
loaded and LocalTrainer trains on examples of the full length, in this same process: on the CPU, under torch's
profiler, whose peak of allocated minus freed bytes is added to what the model had taken before.
"""

import json
import resource
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from fedlora.common.config import CausalLm, ImageClassification, RunConfig
from fedlora.models.base_model import load_base_model
from fedlora.training.footprint.outline import ASSUMED_LABELS, outline_of
from fedlora.training.footprint.step import step_cost
from fedlora.training.peft_bridge import ResidentModel, add_lora
from fedlora.training.tasks.causal_lm import CausalLm as LanguageTask
from fedlora.training.tasks.causal_lm import PreparedConversations
from fedlora.training.tasks.image_classification import PreparedImages
from fedlora.training.tasks.sequence_classification import PreparedTexts
from fedlora.training.trainer import LocalTrainer


def main(case: str, num_steps: int, answer: Path) -> None:
    """Write the predicted and the measured peak, and what the process's resident memory grew by."""
    torch.manual_seed(0)
    config = RunConfig.model_validate_json(case)
    predicted = sum(step_cost(outline_of(config), config, is_cuda=False).training.values())
    resident_before = _resident_peak()
    trainer, prepared = trainer_and_examples(config)
    peak = measured_peak(trainer, prepared, num_steps=num_steps)
    found = {"predicted": predicted, "measured": peak, "resident": _resident_peak() - resident_before}
    answer.write_text(json.dumps(found))


def trainer_and_examples(config: RunConfig) -> tuple[LocalTrainer[Any], Any]:
    """Return the run's trainer on the CPU, and two batches of examples as long as they may be."""
    num_examples = 2 * config.train.batch_size
    if isinstance(config.task, CausalLm):
        module = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=getattr(torch, config.model.dtype))
        module.config.use_cache = False
        task: Any = LanguageTask(
            SimpleNamespace(pad_token_id=0, eos_token_id=0),
            max_length=config.task.max_length,
            packs=config.train.packing,
            picks_positions=True,
        )
        # One that is shorter by a token: without padding, some models leave out their mask.
        lengths = [config.task.max_length - index % 2 for index in range(num_examples)]
        prepared: Any = PreparedConversations(
            [torch.ones(length, dtype=torch.int64) for length in lengths],
            [torch.ones(length, dtype=torch.bool) for length in lengths],
            np.arange(num_examples),
        )
        resident = add_lora(module, config.lora, heads=(), name=config.model.name)
    else:
        base = load_base_model(config, tuple(map(str, range(ASSUMED_LABELS))))
        task, targets = base.task, torch.arange(num_examples) % ASSUMED_LABELS
        if isinstance(config.task, ImageClassification):
            size = config.task.image_size
            prepared = PreparedImages(torch.zeros(num_examples, 3, size, size, dtype=torch.uint8), targets)
        else:
            lengths = [config.task.max_length - index % 2 for index in range(num_examples)]
            prepared = PreparedTexts([torch.ones(length, dtype=torch.int64) for length in lengths], targets)
        resident = add_lora(base.module, config.lora, heads=base.heads, name=config.model.name)
    if config.train.gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            resident.save_memory()
    return LocalTrainer(resident, task, config.train, device=torch.device("cpu")), prepared


def measured_peak(trainer: LocalTrainer[Any], prepared: Any, *, num_steps: int) -> int:
    """Return the most bytes of tensors that were alive while `num_steps` were trained, the model's included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainer.train(prepared, progress=(0.0, 1.0), batch_seed=0, dropout_seed=0, max_steps=num_steps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    events.sort(key=lambda event: float(event["ts"]))
    changes = np.cumsum([event["args"]["Bytes"] for event in events])
    return _model_bytes(trainer.model) + int(changes.max())


def _model_bytes(model: ResidentModel) -> int:
    tensors = [*model.peft_model.parameters(), *model.peft_model.buffers()]
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
