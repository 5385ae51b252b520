"""Case 32: a machine without a GPU whose memory runs out, in the words of torch's own allocator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedlora.client.worker.app import failure_code
from fedlora.common.config import RunConfig
from fedlora.common.messages import INTERNAL, OUT_OF_MEMORY
from fedlora.models.base_model import load_base_model
from fedlora.training.data import load_federated_data
from fedlora.training.memory import is_out_of_memory
from fedlora.training.peft_bridge import add_lora
from fedlora.training.trainer import LocalTrainer

# More than any machine has: torch's own allocator says so, in its own words.
TOO_MANY_BYTES = 1 << 47

Trainer = LocalTrainer[Any]


@pytest.fixture
def bench(vision_run: Callable[..., RunConfig]) -> Callable[[int], tuple[Trainer, Any]]:
    """Return a function that gives a trainer with memory for so many examples at once, and a client's examples."""

    def make(num_examples: int) -> tuple[Trainer, Any]:
        config = vision_run(train={"batch_size": 8, "steps": 1})
        torch.manual_seed(0)
        data = load_federated_data(config)
        base = load_base_model(config, data.labels)
        resident = add_lora(base.module, config.lora, heads=base.heads, name="tiny")

        def take(_module: object, _positional: object, named: dict[str, torch.Tensor]) -> None:
            if len(named["pixel_values"]) > num_examples:
                torch.empty(TOO_MANY_BYTES, dtype=torch.uint8)

        resident.peft_model.register_forward_pre_hook(take, with_kwargs=True)
        trainer: Trainer = LocalTrainer(resident, base.task, config.train, device=torch.device("cpu"))
        return trainer, base.task.prepare(data.clients["chalk"].training)

    return make


def test_where_memory_runs_out_fewer_examples_are_taken_at_once_and_the_training_is_done(
    bench: Callable[[int], tuple[Trainer, Any]],
) -> None:
    trainer, examples = bench(3)
    result = trainer.train(examples, progress=(0.0, 1.0), batch_seed=1, dropout_seed=1)
    assert (result.num_steps, result.micro_batch_size) == (1, 2)
    assert len(trainer.evaluate(examples, np.arange(8), batch_size=8).losses) == 8


def test_where_one_example_does_not_fit_the_client_says_so(bench: Callable[[int], tuple[Trainer, Any]]) -> None:
    trainer, examples = bench(0)
    with pytest.raises(RuntimeError, match="you tried to allocate") as caught:
        trainer.train(examples, progress=(0.0, 1.0), batch_seed=1, dropout_seed=1)
    assert failure_code(caught.value) == OUT_OF_MEMORY
    with pytest.raises(RuntimeError, match="you tried to allocate"):
        trainer.evaluate(examples, np.arange(2), batch_size=2)


@pytest.mark.parametrize("error", [RuntimeError("two shapes cannot be multiplied"), ValueError("memory")])
def test_another_error_is_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert failure_code(error) == INTERNAL
