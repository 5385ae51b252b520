"""The CUDA paths of training: precision, 4 and 8 bits, out-of-memory recovery, several GPUs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedlora.common.config import RunConfig
from fedlora.models.base_model import load_base_model
from fedlora.models.devices import ALL_GPUS, choose_device
from fedlora.training.data import load_federated_data
from fedlora.training.peft_bridge import add_lora
from fedlora.training.trainer import LocalTrainer, TrainingResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MakeRun = Callable[..., RunConfig]


def trained(config: RunConfig, steps: int = 5) -> tuple[LocalTrainer[Any], TrainingResult]:
    """Return a trainer after some steps on the first client, as a worker makes it, and what they gave."""
    torch.manual_seed(0)
    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    resident = add_lora(base.module, config.lora, heads=base.heads, task_type=base.peft_task_type, name="tiny")
    device = choose_device(config.train.device)
    if config.model.quantization == "none" and config.train.device != ALL_GPUS:
        resident.peft_model.to(device)
    trainer: LocalTrainer[Any] = LocalTrainer(resident, base.task, config.train, device=device)
    prepared = base.task.prepare(data.clients["de"].training)
    result = trainer.train(prepared, progress=(0.0, 0.1), batch_seed=1, dropout_seed=1, max_steps=steps)
    return trainer, result


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_as_a_cpu_does(chat_run: MakeRun, precision: str) -> None:
    _, expected = trained(chat_run(train={"device": "cpu"}))
    trainer, result = trained(chat_run(train={"device": "cuda", "precision": precision}))
    assert result.is_finite
    assert result.loss == pytest.approx(expected.loss, rel=0.02)
    assert {parameter.device.type for parameter in trainer.model.parameters} == {"cuda"}


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_weights_train_on_a_gpu(chat_run: MakeRun, quantization: str) -> None:
    lora = {"target_modules": "all-linear"}
    _, expected = trained(chat_run(train={"device": "cpu"}, lora=lora))
    _, result = trained(chat_run(train={"device": "cuda"}, lora=lora, model={"quantization": quantization}))
    assert result.is_finite
    assert result.loss == pytest.approx(expected.loss, rel=0.2)


def test_out_of_memory_is_recovered_from(chat_run: MakeRun) -> None:
    torch.cuda.empty_cache()
    trained(chat_run(train={"device": "cuda"}))
    torch.cuda.reset_peak_memory_stats()
    trained(chat_run(train={"device": "cuda", "batch_size": 16, "micro_batch_size": 1}))
    small = torch.cuda.max_memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.2 * small / total))
    try:
        config = chat_run(train={"device": "cuda", "batch_size": 1024}, task={"max_length": 256})
        _, result = trained(config, steps=2)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.is_finite
    assert result.micro_batch_size > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_layers_of_one_model_spread_over_all_gpus(chat_run: MakeRun) -> None:
    _, expected = trained(chat_run(train={"device": "cuda"}))
    trainer, result = trained(chat_run(train={"device": "cuda_all"}))
    assert len({parameter.device for parameter in trainer.model.parameters}) > 1
    assert result.loss == pytest.approx(expected.loss, rel=0.02)
