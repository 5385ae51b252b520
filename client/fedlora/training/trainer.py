"""The local training loop, and evaluation: plain torch over one resident PEFT model."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fedlora.adapters.moments import Moments
from fedlora.common.config import TrainSection
from fedlora.common.errors import FedloraError, ModelError
from fedlora.common.messages import INTERRUPTED
from fedlora.models.reach import is_routed, logits_of
from fedlora.training.example_gradients import ExampleGradients
from fedlora.training.frozen_layers import MOST_AT_ONCE, FrozenLayersKept
from fedlora.training.kept_outputs import kept_by_process
from fedlora.training.local_optimizer import local_optimizer, move_on, set_rate
from fedlora.training.memory import is_out_of_memory
from fedlora.training.optimizer_state import read_moments, set_moments
from fedlora.training.peft_bridge import ResidentModel
from fedlora.training.private_steps import StepPrivacy, expected_in, poisson_batches, set_noisy
from fedlora.training.schedule import learning_rate_factor, steps_of_round
from fedlora.training.tasks import Batch, Prepared, Task

logger = logging.getLogger(__name__)

# In float16: torch's own is 64 times that, and a round's first steps would be lost on lowering it.
_FIRST_LOSS_SCALE = 1024.0

# Relative, of gradients that are computed in two ways.
_COARSE, _FINE = 0.05, 1e-3


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
        num_tokens: tokens learned from, where losses are per token; else 0.
        micro_batch_size: examples of a forward pass, where want of memory made them fewer than asked for; else 0.
        moments: the optimiser's, where clients keep or share them; else empty.
    """

    num_steps: int
    loss: float
    is_finite: bool
    seconds: dict[str, float]
    num_tokens: int = 0
    micro_batch_size: int = 0
    moments: Moments = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Each example's loss, metric and predicted label, three arrays (n,), and over how many tokens the first two are.

    `token_counts` (n,) is all zero where losses are per example.
    """

    losses: np.ndarray
    metrics: np.ndarray
    predictions: np.ndarray
    token_counts: np.ndarray


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
        max_seconds: float | None = None,
        origin: str = "",
    ) -> None:
        """Take the model over, in which all is marked that may be trained.

        Args:
            max_steps: the most of a round, whatever `settings` ask for.
            max_seconds: after which no step begins.
            origin: equal for equal frozen weights, see `FrozenLayersKept`.

        Raises:
            ModelError: its frozen layers cannot be kept, as `settings` ask for.
        """
        self.model = model
        self.task = task
        self.settings = settings
        self.device = device
        self._max_steps = max_steps
        self._max_seconds = math.inf if max_seconds is None else max_seconds
        self._micro_batch_size = settings.micro_batch_size or settings.batch_size
        self._asked_micro_batch_size = self._micro_batch_size
        self._autocast = _autocast_dtype(settings.precision, device, weights=model.base_dtype)
        self._scaler = self._new_scaler()
        self._has_told = False
        self._privacy: StepPrivacy | None = None
        self._forward: Callable[..., object] = model.peft_model
        self._frozen: FrozenLayersKept | None = None
        if megabytes := settings.frozen_cache_megabytes:
            self._frozen = FrozenLayersKept(
                model.peft_model,
                kept=kept_by_process(),
                origin=origin,
                max_megabytes=megabytes,
                chunk=min(MOST_AT_ONCE, self._micro_batch_size),
            )
            self._forward = self._frozen
        self._judged = self._forward
        self._examples: ExampleGradients | None = None
        if settings.compile:
            # For training alone: what is judged is judged by the model as it is.
            self._forward = torch.compile(model.peft_model, dynamic=True)

    def num_steps(self, num_examples: int) -> int:
        """Return a round's optimiser steps for a client with `num_examples`, at most as many as it takes part in."""
        steps = steps_of_round(self.settings, num_examples)
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
        moments: Moments | None = None,
        changes: Sequence[Tensor] = (),
        privacy: StepPrivacy | None = None,
    ) -> TrainingResult:
        """Return the result of one round's steps on `prepared`; the trained adapter is in the model.

        Args:
            prepared: the client's examples in the task's form.
            progress: the shares of the whole run at which this round begins and ends, for the schedule.
            batch_seed: the order of examples comes from it.
            dropout_seed: torch's global generators are seeded with it.
            max_steps: fewer steps than the settings ask for.
            is_unwanted: asked at each step whether to leave off.
            moments: of the model's parameters, for the optimiser to go on with.
            changes: of each of the model's parameters in the federation's last round, which the steps keep
                `client_momentum` of; without them they are the optimiser's own.
            privacy: of each example: the gradients of a step are clipped one by one, and have noise; its batches come
                from a secure source, and not from `batch_seed`. Whether the result is finite then goes by the adapter
                alone, which has noise, and the loss has none: it is for the client's own eyes.

        Raises:
            ModelError: float16 computes, whose loss scale is by what gradients are, and the round is to be private.
            TrainingInterrupted: `is_unwanted` said so.
            torch.OutOfMemoryError, and what else `is_out_of_memory` tells: one example a forward pass is too much.
        """
        settings, num_steps = self.settings, self.num_steps(len(prepared))
        num_steps = min(num_steps, max_steps or num_steps)
        optimizer = local_optimizer(self.model.trained(), settings)
        momentum = settings.client_momentum if changes else 0.0
        if moments:
            set_moments(optimizer, self.model.trained(), moments)
        start_values = (
            [parameter.detach().clone() for parameter in self.model.parameters] if settings.proximal_mu > 0 else []
        )
        # Who trained here before says nothing of which steps are too large for float16.
        self._scaler = self._new_scaler()
        # A step that an error cut off, such as one for want of memory, leaves its gradients behind.
        optimizer.zero_grad(set_to_none=True)
        self._privacy = privacy
        of_steps = self._of_steps(len(prepared), num_steps, batch_seed)
        together = self._micro_batch_size if privacy is None or self._of_examples().goes_together(prepared) else 1
        self._look_ahead(prepared, [part for step in of_steps for part in _parts(step, together)])
        torch.manual_seed(dropout_seed)
        self.model.set_training(True)
        losses: list[Tensor] = []
        num_tokens, trained = 0, self.model.trained()
        silent = [name for name in trained if not is_routed(name)]
        self._seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
        began = time.perf_counter()
        for step, indices in enumerate(of_steps):
            if is_unwanted():
                raise TrainingInterrupted(f"left off before step {step + 1} of {num_steps}: nobody waits for it")
            if losses and time.perf_counter() - began > self._max_seconds:
                logger.warning("ended after %d of %d steps: limits.max_seconds is over", len(losses), num_steps)
                break
            set_rate(optimizer, (1 - momentum) * self._learning_rate(progress, share=(step + 0.5) / num_steps))
            loss, step_tokens = self._gradients(prepared, indices, optimizer)
            losses.append(loss)
            num_tokens += step_tokens
            silent = [name for name in silent if trained[name].grad is None]
            started = time.perf_counter()
            self._scaler.unscale_(optimizer)
            _add_pull(self.model.parameters, start_values, settings.proximal_mu)
            if settings.max_grad_norm > 0 and privacy is None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters, settings.max_grad_norm)
            self._scaler.step(optimizer)
            self._scaler.update()
            move_on(self.model.parameters, changes, momentum / num_steps)
            optimizer.zero_grad(set_to_none=True)
            self._seconds["optimizer"] += time.perf_counter() - started
        self._look_ahead(prepared, [])
        stacked = torch.stack(losses).cpu()
        is_finite = (privacy is not None or bool(torch.isfinite(stacked).all())) and self.model.is_finite()
        self._tell_of(silent, num_trained=len(trained))
        is_reduced = self._micro_batch_size < self._asked_micro_batch_size
        return TrainingResult(
            len(losses),
            float(stacked.mean() if privacy is None else stacked.nanmean()),
            is_finite,
            {**self._seconds, "training": time.perf_counter() - began},
            num_tokens,
            self._micro_batch_size if is_reduced else 0,
            {} if settings.optimizer_state == "reset" else read_moments(optimizer, self.model.trained()),
        )

    def _of_examples(self) -> ExampleGradients:
        """Return what computes the gradients of single examples, made when a round is to be private."""
        if self._examples is None:
            self._examples = ExampleGradients(
                self.model,
                self.task,
                device=self.device,
                precision=self._precision,
                tolerance=_COARSE if torch.bfloat16 in (self._autocast, self.model.base_dtype) else _FINE,
                frozen=self._frozen,
            )
        return self._examples

    def _of_steps(self, num_examples: int, num_steps: int, batch_seed: int) -> list[np.ndarray]:
        """Return for each step of a round the places of its examples."""
        batch_size = self.settings.batch_size
        if self._privacy is None:
            return list(islice(_batch_indices(num_examples, batch_size, np.random.default_rng(batch_seed)), num_steps))
        if self._autocast == torch.float16:
            raise ModelError(
                'privacy.unit = "example" does not go with float16, whose loss scale is by what gradients are, and '
                'skips steps by them; set train.precision = "bfloat16" or "float32"'
            )
        return poisson_batches(num_examples, expected_in(self.settings, num_examples), num_steps)

    def _look_ahead(self, prepared: P, batches: Sequence[np.ndarray]) -> None:
        """Tell the frozen layers, where their outputs are kept, which examples are to come."""
        if self._frozen is not None:
            self._frozen.look_ahead(
                len(batches), lambda place: self.task.collate(prepared, batches[place], device=self.device).inputs
            )

    def _tell_of(self, silent: Sequence[str], *, num_trained: int) -> None:
        """Say once what got no gradient in any step: a model of the user's own may have parts that nothing reaches."""
        if silent and not self._has_told:
            logger.warning(
                "%d of the %d tensors that are trained got no gradient in a whole round, such as %s: they are sent and "
                "averaged for nothing; lora.exclude_modules leaves layers out",
                len(silent),
                num_trained,
                silent[0],
            )
            self._has_told = True

    def _gradients(self, prepared: P, indices: np.ndarray, optimizer: torch.optim.Optimizer) -> tuple[Tensor, int]:
        """Return a step's mean loss and number of tokens; its gradients are in the parameters.

        What does not fit into memory is tried again with half as many examples a forward pass.
        """
        privacy = self._privacy
        while True:
            size = self._micro_batch_size
            try:
                parts = _parts(indices, size)
                if privacy is None:
                    return self._accumulate(prepared, parts)
                started = time.perf_counter()
                found = self._of_examples().clipped_sum(prepared, parts, clip=privacy.clip)
                # Forward and backward are one here.
                self._seconds["backward"] += time.perf_counter() - started
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                optimizer.zero_grad(set_to_none=True)
                if min(size, len(indices)) <= 1:
                    raise
                self._micro_batch_size = (min(size, len(indices)) + 1) // 2
            # Outside of the handler, which would keep the tensors of the failed step alive.
            logger.warning(
                "out of memory: %d examples a forward pass from here on, not %d; the step stays the same, but the run "
                "is no more equal to another to the last bit",
                self._micro_batch_size,
                size,
            )
            _free_memory(self.device)
        set_noisy(self.model, found.gradients, privacy, num_expected=expected_in(self.settings, len(prepared)))
        return found.loss / len(indices) if len(indices) else found.loss * math.nan, 0

    def _accumulate(self, prepared: P, parts: Sequence[np.ndarray]) -> tuple[Tensor, int]:
        """Return the mean loss over all parts of a step, and their tokens; the gradients add up to that loss's."""
        batches = [self.task.collate(prepared, part, device=self.device) for part in parts]
        sizes = [batch.num_tokens or len(part) for batch, part in zip(batches, parts, strict=True)]
        total = torch.zeros((), device=self.device)
        for batch, size in zip(batches, sizes, strict=True):
            started = time.perf_counter()
            with self._precision():
                loss = self.task.loss(logits_of(self._forward(**batch.inputs)), batch)
                # The whole step at once is left as it is, to the last bit.
                share = loss if len(batches) == 1 else loss * (size / sum(sizes))
            forwarded = time.perf_counter()
            self._scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            self._seconds["forward"] += forwarded - started
            self._seconds["backward"] += time.perf_counter() - forwarded
            total = total + share.detach()
        return total, sum(batch.num_tokens for batch in batches)

    # Not inference_mode: a model may keep what it computed here, such as tables of positions, for its next training.
    @torch.no_grad()
    def evaluate(self, prepared: P, indices: np.ndarray, *, batch_size: int) -> Evaluation:
        """Return how the model's adapter does on the examples at `indices`, in their order."""
        self.model.set_training(False)
        self._look_ahead(prepared, _parts(indices, batch_size))
        judged: list[Evaluation] = []
        begin = 0
        while begin < len(indices):
            try:
                judged.append(self._judge(prepared, indices[begin : begin + batch_size]))
                begin += batch_size
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or batch_size == 1:
                    raise
                batch_size = (batch_size + 1) // 2
            logger.warning("out of memory: %d examples a forward pass are judged from here on", batch_size)
            _free_memory(self.device)
        self._look_ahead(prepared, [])
        if not judged:
            return Evaluation(np.empty(0), np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        columns = ("losses", "metrics", "predictions", "token_counts")
        return Evaluation(*(np.concatenate([getattr(part, column) for part in judged]) for column in columns))

    def _judge(self, prepared: P, indices: np.ndarray) -> Evaluation:
        batch: Batch = self.task.collate(prepared, indices, device=self.device)
        with self._precision():
            output = logits_of(self._judged(**batch.inputs))
        losses, metrics, predictions = (column.cpu() for column in self.task.judge(output, batch))
        counts = (
            torch.zeros(len(indices), dtype=torch.int64) if batch.token_counts is None else batch.token_counts.cpu()
        )
        return Evaluation(losses.double().numpy(), metrics.double().numpy(), predictions.numpy(), counts.numpy())

    def _learning_rate(self, progress: tuple[float, float], *, share: float) -> float:
        """Return the rate at a share of the round; at the middle of a step it is never zero, so no step is lost."""
        overall = progress[0] + (progress[1] - progress[0]) * share
        factor = learning_rate_factor(overall, schedule=self.settings.schedule, warmup=self.settings.warmup)
        return self.settings.learning_rate * factor

    def _new_scaler(self) -> torch.amp.GradScaler:
        is_needed = self._autocast == torch.float16
        return torch.amp.GradScaler(self.device.type, init_scale=_FIRST_LOSS_SCALE, enabled=is_needed)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is not None:
            return torch.autocast(self.device.type, dtype=self._autocast)
        return contextlib.nullcontext()


def _autocast_dtype(precision: str, device: torch.device, *, weights: torch.dtype) -> torch.dtype | None:
    """Return the type to compute in where it is not float32: the one asked for, the weights' own, or the device's."""
    if precision != "auto":
        return None if precision == "float32" else cast(torch.dtype, getattr(torch, precision))
    if weights in (torch.float16, torch.bfloat16):
        return weights
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None


def _add_pull(parameters: Sequence[torch.nn.Parameter], starts: Sequence[Tensor], mu: float) -> None:
    """Add mu (w - start) to the gradients, FedProx's; without `starts`, leave them as they are.

    What has no gradient in this step, such as an expert that no token was sent to, is pulled if it has moved before.
    """
    for parameter, start in zip(parameters, starts, strict=False):
        change = parameter.detach() - start
        if parameter.grad is not None:
            parameter.grad.add_(change, alpha=mu)
        elif change.any():
            parameter.grad = change.mul_(mu)


def _parts(indices: np.ndarray, size: int) -> list[np.ndarray]:
    return [indices[place : place + size] for place in range(0, len(indices), size)]


def _free_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


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
