"""The model of a finished run, to be used: the base model, its head and the adapter in one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from fedlora.adapters.peft_format import CONFIG_FILE
from fedlora.common.errors import AdapterError, ModelError, StoreError
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import ADAPTER_FOLDER, MANIFEST_FILE, RUN_FILE
from fedlora.training.base_model import load_base_model
from fedlora.training.data.in_memory import Input, unlabelled
from fedlora.training.peft_bridge import with_saved_adapter
from fedlora.training.tasks import Task
from fedlora.training.trainer import logits_of


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A run's model.

    Attributes:
        model: a PeftModel in evaluation mode; it takes `pixel_values`, or `input_ids` and `attention_mask`.
        labels: the vocabulary, in the order of the logits.
        task: turns examples into the model's inputs.
        image_size: pixels; the pictures' side, None for texts.
        batch_size: inputs that `predict` gives the model at once.
    """

    model: PeftModel
    labels: tuple[str, ...]
    task: Task[Any]
    image_size: int | None
    batch_size: int = 32

    @torch.no_grad()
    def predict(self, inputs: Sequence[Input]) -> list[str]:
        """Return the likeliest label of each text, or of each picture (Pillow, or uint8 (height, width[, 3])).

        Raises:
            DataError: an input is of another kind.
        """
        predicted: list[str] = []
        for start in range(0, len(inputs), self.batch_size):
            prepared = self.task.prepare(
                unlabelled(inputs[start : start + self.batch_size], image_size=self.image_size)
            )
            batch = self.task.collate(prepared, np.arange(len(prepared)))
            _, _, indices = self.task.judge(logits_of(self.model(**batch.inputs)), batch)
            predicted += [self.labels[index] for index in indices.tolist()]
        return predicted


def load_trained(folder: str | Path) -> TrainedModel:
    """Return the model of the run in `folder`, with its newest adapter, on the CPU in float32.

    Raises:
        FedloraError: the folder holds no run with an adapter, or its base model cannot be loaded or has changed.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_FOLDER / CONFIG_FILE).is_file():
        raise AdapterError(
            f"{folder}: no {ADAPTER_FOLDER}/{CONFIG_FILE}; expected the folder of a run with a finished round"
        )
    config = load_run(folder / RUN_FILE)
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
        labels, trained_on = tuple(manifest["labels"]), manifest["base_model"]["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{folder}/{MANIFEST_FILE} cannot be read ({error}); restore it") from error
    base = load_base_model(config, labels)
    if base.fingerprint != trained_on:
        raise ModelError(
            f"{folder}: the adapter was trained on another model than {config.model.name} is here "
            f"({trained_on}, found {base.fingerprint}); restore the run's model"
        )
    model = with_saved_adapter(base.module, folder / ADAPTER_FOLDER)
    image_size = config.task.image_size if config.task.kind == "image_classification" else None
    return TrainedModel(model, labels, base.task, image_size, config.evaluation.batch_size)
