"""Scores of a client's own trainer: its `evaluate()` on a fixed choice of the client's examples, with its metric."""

import math
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset
from transformers import EvalPrediction

from fedlora.common.config import CausalLm, OwnTask, TaskSection
from fedlora.common.errors import ConfigError, DataError
from fedlora.common.messages import Score
from fedlora.training.own_trainer.made import OwnTrainer, script_at_work
from fedlora.training.own_trainer.rounds import lay_down

# In the labels, of what is not judged.
_IGNORED = -100


def judged(
    own: OwnTrainer, part: str, indices: np.ndarray, *, task: TaskSection, metric_name: str, most_loss: float | None
) -> Score:
    """Return the score of the model's adapter on the examples at `indices` of a part.

    The metric is the one that the script gives under the run's name, or under the only one that ends with it; where it
    gives none at all and the task has labels, the share of right predictions. Over how many tokens a language model's
    score is, the collator's labels say.

    Args:
        part: "validation" or "test".
        most_loss: what a larger mean loss, and one that is no number, counts as.

    Raises:
        ConfigError: the script has metrics, and not the run's, or several that could be it; or it keeps no predictions.
        DataError: there is no loss.
    """
    trainer: Any = own.trainer
    chosen = taken(own.held[part], indices)
    try:
        with _given_examples(trainer):
            found = _evaluated(trainer, chosen)
            if (metric := _metric_in(found, metric_name)) is None and _may_be_given(trainer, task):
                trainer.preprocess_logits_for_metrics = _most_likely
                trainer.compute_metrics = _RightShare(metric_name, is_shifted=isinstance(task, CausalLm))
                found = _evaluated(trainer, chosen)
                metric = _metric_in(found, metric_name)
            num_tokens = _num_tokens(trainer, chosen) if isinstance(task, CausalLm) else 0
    finally:
        lay_down(trainer)
    if (loss := found.get("eval_loss")) is None:
        raise DataError("the trainer's evaluate() gives no eval_loss: its eval_dataset has no labels")
    if metric is None and trainer.args.prediction_loss_only:
        raise ConfigError(
            f"the run's metric is {metric_name!r}, and with prediction_loss_only the trainer keeps no predictions to "
            "compute it from; leave that out"
        )
    if metric is None:
        names = ", ".join(sorted(found)) or "nothing"
        raise ConfigError(
            f"the run's metric is {metric_name!r}, and evaluate() gives {names}; have compute_metrics give it as "
            f"{_key(metric_name)!r} too"
        )
    if most_loss is not None:
        loss = min(loss, most_loss) if math.isfinite(loss) else most_loss
    return Score(len(indices), float(loss), float(metric), num_tokens)


def taken(dataset: Any, indices: np.ndarray) -> Sized:
    """Return the examples at `indices` in the form that they have, so that a trainer treats them as it does all."""
    chosen: Sized = dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices.tolist())
    return chosen


@contextmanager
def _given_examples(trainer: Any) -> Iterator[None]:
    """Let a trainer judge each example that it is given, and no others.

    The last batch is judged however few are in it; and a data loader whose processes stay would be taken for any data.
    """
    is_dropping = trainer.args.dataloader_drop_last
    trainer.args.dataloader_drop_last = False
    vars(trainer).pop("_eval_dataloaders", None)
    try:
        yield
    finally:
        trainer.args.dataloader_drop_last = is_dropping
        vars(trainer).pop("_eval_dataloaders", None)


def _evaluated(trainer: Any, chosen: Sized) -> dict[str, float]:
    """Return what `evaluate` gives and logs, such as the mean token accuracy of TRL, which it does not return."""
    num_before = len(trainer.state.log_history)
    with script_at_work("the trainer's evaluation"):
        given = trainer.evaluate(eval_dataset=chosen)
    logged = {key: value for entry in trainer.state.log_history[num_before:] for key, value in entry.items()}
    return {**logged, **given}


def _metric_in(found: dict[str, float], metric_name: str) -> float | None:
    """Return the metric of the run's name, or else the one whose name ends with it.

    Raises:
        ConfigError: several end with it.
    """
    key = _key(metric_name)
    for name in (f"eval_{key}", key):
        if name in found:
            return found[name]
    ending = sorted(name for name in found if name.endswith(f"_{key}"))
    if len(ending) > 1:
        raise ConfigError(
            f"the run's metric is {metric_name!r}, and evaluate() gives {', '.join(ending)}; have compute_metrics give "
            f"the one that is meant as {key!r} too"
        )
    return found[ending[0]] if ending else None


def _key(metric_name: str) -> str:
    return metric_name.replace(" ", "_")


def _may_be_given(trainer: Any, task: TaskSection) -> bool:
    """Return whether the script leaves the metric to us, and the task is one whose metric is a share of labels."""
    args = trainer.args
    is_free = trainer.compute_metrics is None and trainer.preprocess_logits_for_metrics is None
    return is_free and not isinstance(task, OwnTask) and not (args.prediction_loss_only or args.batch_eval_metrics)


def _most_likely(logits: Any, _labels: Tensor) -> Tensor:
    """Return the most likely label of each example or token, which takes less memory than all logits."""
    first: Tensor = logits[0] if isinstance(logits, tuple) else logits
    return first.argmax(-1)


class _RightShare:
    """The share of right predictions, of tokens where a language model's are one place before the labels."""

    def __init__(self, metric_name: str, *, is_shifted: bool) -> None:
        self._key = _key(metric_name)
        self._is_shifted = is_shifted

    def __call__(self, judged: EvalPrediction) -> dict[str, float]:
        predictions, labels = np.asarray(judged.predictions), np.asarray(judged.label_ids)
        if self._is_shifted:
            predictions, labels = predictions[:, :-1], labels[:, 1:]
        counted = labels != _IGNORED
        return {self._key: float((predictions == labels)[counted].mean()) if counted.any() else 0.0}


def _num_tokens(trainer: Any, chosen: Sized) -> int:
    """Return how many tokens a language model's score is over; none where batches hold no labels."""
    labels = (batch.get("labels") for batch in trainer.get_eval_dataloader(chosen))
    return sum(int((found[:, 1:] != _IGNORED).sum()) for found in labels if isinstance(found, torch.Tensor))
