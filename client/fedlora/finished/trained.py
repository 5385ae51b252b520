"""The model of a finished run, to be used: the base model, its head and the adapter in one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel

from fedlora.common.config import RunConfig
from fedlora.common.errors import ModelError
from fedlora.finished.finished_run import Choice, open_finished
from fedlora.models.base_model import load_base_model
from fedlora.models.reach import logits_of
from fedlora.training.data.examples import Conversation, Turn
from fedlora.training.data.given_examples import Input
from fedlora.training.data.in_memory import unlabelled
from fedlora.training.peft_bridge import with_saved_adapter
from fedlora.training.tasks import CausalLm, Task

Style = Literal["chat", "instruction", "plain"]


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A run's model.

    Attributes:
        model: a PeftModel in evaluation mode; it takes `pixel_values`, or `input_ids` and `attention_mask`.
        labels: the vocabulary, in the order of the logits; () of a language model.
        task: turns examples into the model's inputs.
        image_size: pixels; the pictures' side, None for texts.
        pixel_range: black and white of pictures that are deeper than 8 bits; None if there were none in training.
        batch_size: inputs that `predict` gives the model at once.
        tokenizer: transformers' own; None for pictures.
        style: of `generate`: how a text alone is put to a language model.
    """

    model: PeftModel
    labels: tuple[str, ...]
    task: Task[Any]
    image_size: int | None
    batch_size: int = 32
    tokenizer: Any = None
    style: Style = "instruction"
    pixel_range: tuple[float, float] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def predict(self, inputs: Sequence[Input]) -> list[str]:
        """Return the likeliest label of each text, or of each picture, given as to `simulate`.

        Raises:
            DataError: an input is of another kind.
            ModelError: the model is no classifier.
        """
        if not self.labels:
            raise ModelError("this run's model has no labels to predict; a language model answers with `generate`")
        predicted: list[str] = []
        for start in range(0, len(inputs), self.batch_size):
            prepared = self.task.prepare(
                unlabelled(
                    inputs[start : start + self.batch_size], image_size=self.image_size, pixel_range=self.pixel_range
                )
            )
            batch = self.task.collate(prepared, np.arange(len(prepared)), device=self.device)
            _, _, indices = self.task.judge(logits_of(self.model(**batch.inputs)), batch)
            predicted += [self.labels[index] for index in indices.tolist()]
        return predicted

    def generate(self, prompts: Sequence[str | Conversation], max_new_tokens: int = 128) -> list[str]:
        """Return the model's answer to each prompt, the likeliest token at each place.

        Args:
            prompts: texts, which are put as `style` says; or conversations, rendered as in training, of which an
                answer at the end is left out.
            max_new_tokens: the most tokens of an answer.

        Raises:
            ModelError: the model is no language model, or its tokenizer cannot render a conversation.
        """
        if not isinstance(self.task, CausalLm):
            raise ModelError("this run's model is no language model; a classifier answers with `predict`")
        asked = [_asking(prompt, self.style) for prompt in prompts]
        return self.task.answers(self.model, asked, max_new_tokens=max_new_tokens)


def load_trained(folder: str | Path, *, adapter: Choice = "newest", device: str = "cpu") -> TrainedModel:
    """Return the model of the run in `folder`, with its newest adapter, or with that of its best round.

    On the CPU it is in float32, elsewhere the base weights have the run's own type. They are not quantised, even if
    they were in training.

    Raises:
        FedloraError: the folder holds no run with an adapter, or its base model cannot be loaded or has changed.
    """
    run = open_finished(folder, adapter)
    config = run.config
    base = load_base_model(run.unquantised(), run.labels)
    run.require(base.fingerprint)
    module = base.module.float() if torch.device(device).type == "cpu" else base.module
    model = with_saved_adapter(module, run.adapter_folder).to(device)
    image_size = config.task.image_size if config.task.kind == "image_classification" else None
    return TrainedModel(
        model,
        run.labels,
        base.task,
        image_size,
        config.evaluation_batch_size,
        base.tokenizer,
        _style_of(config, base.tokenizer),
        None if (ends := getattr(config.task, "pixel_range", None)) == "auto" else ends,
    )


def _style_of(config: RunConfig, tokenizer: Any) -> Style:
    """Return how a text alone is put: as the run's data were, as far as the run file says."""
    if config.data.format in ("text", "prompt_completion"):
        return "plain"
    has_template = getattr(config.task, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    return "instruction" if has_template or config.data.format == "alpaca" else "plain"


def _asking(prompt: str | Conversation, style: Style) -> Conversation:
    """Return the conversation with an answer at its end, which `CausalLm.answers` leaves out."""
    conversation = Conversation((Turn("user", prompt),), style) if isinstance(prompt, str) else prompt
    *before, last = conversation.turns
    if last.role == "assistant":
        return replace(conversation, turns=(*before, replace(last, is_learned=True)))
    return replace(conversation, turns=(*conversation.turns, Turn("assistant", "answer")))
