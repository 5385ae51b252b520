"""The local training loop, and evaluation: plain torch over one resident PEFT model."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fedlora.common.config import TrainSection
from fedlora.common.errors import ConfigError, FedloraError
from fedlora.common.messages import INTERRUPTED
from fedlora.training.peft_bridge import ResidentModel
from fedlora.training.schedule import learning_rate_factor
from fedlora.training.tasks import Prepared, Task


class TrainingInterrupted(FedloraError):  # noqa: N818 (no error: it was asked for)
    """A training that nobody waits for any more."""

    code = INTERRUPTED


@dataclass(frozen=True)
class TrainingResult:
    """What a client's steps gave.

    Attributes:
        num_steps: optimiser steps done.
        loss: their mean loss.
        is_finite: whether every step's loss was, and the adapter after the last step is.
        seconds: forward, backward, optimizer, training (the whole loop, with putting batches together).
            On a GPU the three parts only say how long launching the work took.
    """

    num_steps: int
    loss: float
    is_finite: bool
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Each example's loss, metric and predicted label, three arrays (n,)."""

    losses: np.ndarray
    metrics: np.ndarray
    predictions: np.ndarray


P = TypeVar("P", bound=Prepared)


class LocalTrainer(Generic[P]):
    """Trains and judges the adapter that `model` holds."""

    def __init__(
        self,
        model: ResidentModel,
        task: Task[P],
        settings: TrainSection,
        *,
        device: torch.device,
        max_steps: int | None = None,
    ) -> None:
        """`max_steps` are the most of a round, whatever `settings` ask for."""
        self.model = model
        self.task = task
        self.settings = settings
        self.device = device
        self._max_steps = max_steps
        self._autocast = _uses_bfloat16(settings.precision, device)

    def num_steps(self, num_examples: int) -> int:
        """Return a round's optimiser steps for a client with `num_examples`."""
        if self.settings.epochs is not None:
            steps = max(1, round(self.settings.epochs * num_examples / min(self.settings.batch_size, num_examples)))
        else:
            steps = cast(int, self.settings.steps)
        return steps if self._max_steps is None else min(steps, self._max_steps)

    def train(
        self,
        prepared: P,
        *,
        progress: tuple[float, float],
        batch_seed: int,
        dropout_seed: int,
        max_steps: int | None = None,
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> TrainingResult:
        """Return the result of one round's steps on `prepared`; the trained adapter is in the model.

        Args:
            prepared: the client's examples in the task's form.
            progress: the shares of the whole run at which this round begins and ends, for the schedule.
            batch_seed: the order of examples comes from it.
            dropout_seed: torch's global generators are seeded with it.
            max_steps: fewer steps than the settings ask for.
            is_unwanted: asked at each step whether to leave off.

        Raises:
            TrainingInterrupted: `is_unwanted` said so.
        """
        settings, model, num_steps = self.settings, self.model.peft_model, self.num_steps(len(prepared))
        num_steps = min(num_steps, max_steps or num_steps)
        optimizer = self._optimizer()
        # A step that an error cut off, such as one for want of memory, leaves its gradients behind.
        optimizer.zero_grad(set_to_none=True)
        batches = _batch_indices(len(prepared), settings.batch_size, np.random.default_rng(batch_seed))
        torch.manual_seed(dropout_seed)
        self.model.set_training(True)
        losses: list[Tensor] = []
        forward = backward = stepping = 0.0
        began = time.perf_counter()
        for step in range(num_steps):
            if is_unwanted():
                raise TrainingInterrupted(f"left off before step {step + 1} of {num_steps}: nobody waits for it")
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rate(progress, share=(step + 0.5) / num_steps)
            batch = self.task.collate(prepared, next(batches), device=self.device)

            start = time.perf_counter()
            with self._precision():
                loss = self.task.loss(logits_of(model(**batch.inputs)), batch)
            after_forward = time.perf_counter()
            loss.backward()  # type: ignore[no-untyped-call]
            after_backward = time.perf_counter()
            if settings.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(self.model.parameters, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())

            forward += after_forward - start
            backward += after_backward - after_forward
            stepping += time.perf_counter() - after_backward
        stacked = torch.stack(losses).cpu()
        is_finite = bool(torch.isfinite(stacked).all()) and self.model.is_finite()
        seconds = {"forward": forward, "backward": backward, "optimizer": stepping}
        seconds["training"] = time.perf_counter() - began
        return TrainingResult(num_steps, float(stacked.mean()), is_finite, seconds)

    # Not inference_mode: a model may keep what it computed here, such as tables of positions, for its next training.
    @torch.no_grad()
    def evaluate(self, prepared: P, indices: np.ndarray, *, batch_size: int) -> Evaluation:
        """Return how the model's adapter does on the examples at `indices`, in their order."""
        self.model.set_training(False)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for start in range(0, len(indices), batch_size):
            batch = self.task.collate(prepared, indices[start : start + batch_size], device=self.device)
            with self._precision():
                output = logits_of(self.model.peft_model(**batch.inputs))
            parts.append(self.task.judge(output, batch))
        if not parts:
            return Evaluation(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64))
        losses, metrics, predictions = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return Evaluation(losses.double().numpy(), metrics.double().numpy(), predictions.numpy())

    def _learning_rate(self, progress: tuple[float, float], *, share: float) -> float:
        """Return the rate at a share of the round; at the middle of a step it is never zero, so no step is lost."""
        overall = progress[0] + (progress[1] - progress[0]) * share
        factor = learning_rate_factor(overall, schedule=self.settings.schedule, warmup=self.settings.warmup)
        return self.settings.learning_rate * factor

    def _optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        if settings.optimizer == "sgd":
            return torch.optim.SGD(
                self.model.parameters,
                lr=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
        return torch.optim.AdamW(
            self.model.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA where there is one, else Apple's GPU, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_here in has.items() if is_here))
    if not has[name]:
        raise ConfigError(f"train.device is {name!r}, but torch finds none here; use auto or cpu")
    return torch.device(name)


def _uses_bfloat16(precision: str, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def logits_of(output: object) -> Tensor:
    """Return the logits of a transformers output, or the output itself where it is a tensor."""
    return cast(Tensor, getattr(output, "logits", output))


def _batch_indices(num_examples: int, batch_size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield batches for ever: shuffled passes over the examples, cut without regard to where a pass ends.

    Where there are fewer examples than a batch takes, each batch is all of them, once.
    """
    batch_size = min(batch_size, num_examples)
    pending = np.empty(0, dtype=np.int64)
    while True:
        while len(pending) < batch_size:
            pending = np.concatenate([pending, generator.permutation(num_examples)])
        yield pending[:batch_size]
        pending = pending[batch_size:]
