"""Time LocalTrainer and a bare loop in turn: python timed_trainer.py NUM_PAIRS NUM_STEPS ANSWER.json

Both train the same PEFT model (the preset "digits": DINOv2-small at 56 pixels, batches of 16, rank 8)
from the same adapter on the same batches, for as many steps as a client does in a round, on the CPU
with one torch thread. LocalTrainer is called as a worker calls it: it makes its optimiser, collates
each batch from bytes, sets the learning rate, and keeps times. The bare loop is what a good engineer
would write with torch alone: it makes the same fused AdamW, and finds its batches collated. Which of
the two goes first changes from pair to pair. That they do the same work is checked: equal losses.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from progress import progress
from torch import Tensor, nn
from torch.nn import functional

from fedlora.common.config import TrainSection
from fedlora.models.base_model import load_base_model
from fedlora.simulation import preset
from fedlora.training.data import load_federated_data
from fedlora.training.peft_bridge import add_lora
from fedlora.training.trainer import LocalTrainer, _batch_indices

_BATCH_SEED = 1


def main(num_pairs: int, num_steps: int, answer: Path) -> None:
    """Write the seconds and CPU seconds of each loop in each pair."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = preset("digits", f"train.steps={num_steps}", "train.device=cpu")
    data = load_federated_data(config)
    base = load_base_model(config, data.labels)
    resident = add_lora(base.module, config.lora, heads=base.heads, name=config.model.name)
    trainer = LocalTrainer(resident, base.task, config.train, device=torch.device("cpu"))
    prepared = base.task.prepare(next(iter(data.clients.values())).training)
    indices = _batch_indices(len(prepared), config.train.batch_size, np.random.default_rng(_BATCH_SEED))
    collated = [base.task.collate(prepared, chosen) for chosen in itertools.islice(indices, num_steps)]
    batches = [(batch.inputs["pixel_values"], batch.targets) for batch in collated]
    initial = resident.read()

    def ours() -> float:
        return trainer.train(prepared, progress=(0.0, 0.1), batch_seed=_BATCH_SEED, dropout_seed=0).loss

    def bare() -> float:
        return train_bare(resident.peft_model, batches, config.train)

    seconds: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    # The first pair fills caches, and does not count.
    for pair in range(num_pairs + 1):
        progress(f"pair {pair} of {num_pairs}, {num_steps} steps each" if pair else "a first pair that does not count")
        losses = set()
        for name, loop in [("ours", ours), ("bare", bare)][:: 1 if pair % 2 else -1]:
            resident.load(initial)
            timed, loss = _timed(loop)
            losses.add(loss)
            if pair:
                seconds[name].append(timed)
        if len(losses) > 1:
            raise RuntimeError(f"the two loops did not do the same work: mean losses {losses}")
    answer.write_text(json.dumps(seconds))


def train_bare(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], settings: TrainSection) -> float:
    """Return the mean loss of one step on each of `batches`: pixel_values and labels."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    model.train()
    losses = []
    for pixel_values, labels in batches:
        loss = functional.cross_entropy(model(pixel_values=pixel_values), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _timed(loop: Callable[[], float]) -> tuple[dict[str, float], float]:
    """Return the seconds and CPU seconds that `loop` took, and the loss it gave."""
    began, cpu_began = time.perf_counter(), time.process_time()
    loss = loop()
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}, loss


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
