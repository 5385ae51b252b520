"""One round of a client's own trainer: a whole `train()` of as many steps as the run says.

`state.global_step` and epochs count from the round's start, and callbacks hear of a training's beginning and end in
each round. The scheduler spans the whole run, as everywhere: it is made for all rounds' steps, and moved on to this
round's first. An optimiser is made anew for each round, with the moments that the run has it go on with.
"""

import inspect
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import SaveStrategy

from fedlora.adapters.moments import Moments
from fedlora.common.config import TrainSection
from fedlora.common.errors import ConfigError, DataError
from fedlora.training.optimizer_state import read_moments, set_moments
from fedlora.training.own_trainer.made import MOST_SEED, OwnTrainer, script_at_work
from fedlora.training.trainer import TrainingInterrupted, TrainingResult

logger = logging.getLogger(__name__)

# Optimisers whose moments torch has under names that the run knows.
_KINDS: Mapping[str, tuple[type[torch.optim.Optimizer], ...]] = {
    "adamw": (torch.optim.Adam, torch.optim.AdamW),
    "sgd": (torch.optim.SGD,),
}


@dataclass(frozen=True)
class Round:
    """What a round asks of a trainer.

    Attributes:
        number: from 1; `num_rounds` are those of the whole run, over which the scheduler spans.
        batch_seed: the order of examples comes from it.
        dropout_seed: all global generators are seeded with it.
        moments: of the model's parameters, for the optimiser to go on with.
        is_rehearsal: whether nothing is evaluated or saved.
    """

    number: int
    num_rounds: int
    num_steps: int
    batch_seed: int
    dropout_seed: int
    moments: Moments
    is_rehearsal: bool = False


def steps_of_own(own: OwnTrainer, settings: TrainSection) -> int:
    """Return a round's optimiser steps by the run's steps or epochs, these over the script's own batches."""
    if settings.steps is not None:
        return settings.steps
    num = own.num_examples("training")
    return max(1, round((settings.epochs or 0) * num / min(own.examples_a_step, num)))


def train_round(
    own: OwnTrainer,
    asked: Round,
    settings: TrainSection,
    *,
    max_seconds: float | None,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Return the result of a round's steps; the trained adapter is in the model.

    Args:
        max_seconds: after which no step begins.
        is_unwanted: asked after each step whether to leave off.

    Raises:
        TrainingInterrupted: `is_unwanted` said so.
        ConfigError: the run keeps or shares moments that the trainer's optimiser does not have.
        DataError: there was not one whole batch.
        ModelError: the script raised something.
    """
    trainer: Any = own.trainer
    args = trainer.args
    args.max_steps = asked.num_steps
    args.seed = asked.dropout_seed % MOST_SEED
    args.data_seed = trainer.accelerator.dataloader_config.data_seed = asked.batch_seed % MOST_SEED
    # A loss that is not finite would be left out of the mean.
    args.logging_nan_inf_filter = False
    trainer.optimizer = trainer.lr_scheduler = None
    watch = _Watch(own, asked, settings, max_seconds=max_seconds, is_unwanted=is_unwanted)
    make_scheduler, own_make_scheduler = trainer.create_scheduler, vars(trainer).get("create_scheduler")
    trainer.create_scheduler = lambda num_training_steps, optimizer=None: _moved_on(
        make_scheduler(num_training_steps * asked.num_rounds, optimizer), (asked.number - 1) * asked.num_steps
    )
    trainer.add_callback(watch)
    set_seed(asked.dropout_seed % MOST_SEED)
    began = time.perf_counter()
    try:
        with script_at_work("the trainer"):
            output = trainer.train()
        if watch.was_unwanted:
            raise TrainingInterrupted(f"left off after {output.global_step} of {asked.num_steps} steps: nobody waits")
        if not output.global_step:
            raise DataError(
                f"the trainer did no step: {own.num_examples('training')} examples give no whole batch; lower the "
                "batch size, or leave out dataloader_drop_last"
            )
        loss = float(output.training_loss)
        is_kept = settings.optimizer_state != "reset"
        return TrainingResult(
            output.global_step,
            loss,
            math.isfinite(loss) and own.resident.is_finite(),
            {"training": time.perf_counter() - began},
            moments=read_moments(_plain(trainer.optimizer), own.resident.trained()) if is_kept else {},
        )
    finally:
        if own_make_scheduler is None:
            del trainer.create_scheduler
        else:
            trainer.create_scheduler = own_make_scheduler
        trainer.remove_callback(watch)
        trainer.optimizer = trainer.lr_scheduler = None
        lay_down(trainer)


def lay_down(trainer: Any) -> None:
    """Undo what a training or evaluation has put around the model's forward, which the next one would put there again.

    Mixed precision would otherwise wrap it once more in each round.
    """
    trainer.model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()


class _Watch(TrainerCallback):
    """Sets the moments that a round goes on with, and ends it in time."""

    def __init__(
        self,
        own: OwnTrainer,
        asked: Round,
        settings: TrainSection,
        *,
        max_seconds: float | None,
        is_unwanted: Callable[[], bool],
    ) -> None:
        self._own = own
        self._asked = asked
        self._settings = settings
        self._end = math.inf if max_seconds is None else time.perf_counter() + max_seconds
        self._is_unwanted = is_unwanted
        self.was_unwanted = False

    def on_train_begin(self, *_event: Any, **_kwargs: Any) -> None:
        optimizer = _plain(self._own.trainer.optimizer)
        _require_moments(optimizer, self._settings)
        set_moments(optimizer, self._own.resident.trained(), self._asked.moments)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Any
    ) -> None:
        if state.global_step >= self._asked.num_steps:
            # The end of a round is none of the training that the script's own save_steps are for.
            is_due = state.save_steps > 0 and state.global_step % state.save_steps == 0
            control.should_save &= is_due or args.save_strategy != SaveStrategy.STEPS
        elif time.perf_counter() > self._end:
            logger.warning("ended after %d of %d steps: limits.max_seconds is over", state.global_step, state.max_steps)
            control.should_training_stop = True
        self._look(control)

    def on_substep_end(self, *event: Any, **_kwargs: Any) -> None:
        self._look(event[-1])

    def on_epoch_end(self, *event: Any, **_kwargs: Any) -> None:
        self._look(event[-1])

    def _look(self, control: TrainerControl) -> None:
        if self._is_unwanted():
            self.was_unwanted = control.should_training_stop = True
        if self.was_unwanted or self._asked.is_rehearsal:
            control.should_save = control.should_evaluate = False


def _require_moments(optimizer: torch.optim.Optimizer, settings: TrainSection) -> None:
    """Refuse to keep or share moments that an optimiser does not have in torch's own form."""
    state = settings.optimizer_state
    if state == "reset":
        return
    allowed = _KINDS[settings.optimizer] if state == "shared" else (*_KINDS["adamw"], *_KINDS["sgd"])
    if not isinstance(optimizer, allowed):
        names = ", ".join(kind.__name__ for kind in allowed)
        raise ConfigError(
            f'train.optimizer_state = "{state}" needs an optimiser of torch ({names}); the trainer has '
            f'{type(optimizer).__name__}: give it another, or set "reset"'
        )


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimiser that accelerate has wrapped."""
    plain: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return plain


def _moved_on(scheduler: Any, num_steps: int) -> Any:
    """Return a scheduler after so many steps; one that goes by metrics is left at its beginning."""
    if "metrics" in inspect.signature(scheduler.step).parameters:
        return scheduler
    with warnings.catch_warnings():
        # Of a scheduler that moves before its optimiser does.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(num_steps):
            scheduler.step()
    return scheduler
