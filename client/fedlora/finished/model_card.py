"""The README.md of an exported model: what it is, how it did, and the lines that load it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlora.common.messages import Score

CARD_FILE = "README.md"


@dataclass(frozen=True)
class History:
    """How the exported adapter came about.

    Attributes:
        run: the run's name.
        method: of the aggregation.
        round: after which it was the global adapter; None where that is not known.
        num_rounds: that the run has finished.
        num_clients: that took part in any of them.
        metric_name: what `Score.metric` is, such as "accuracy".
        judged_on: which examples the scores are of, such as "held-out examples".
        start, end: the scores before training and after `round`; None without any.
        groups: those after `round` by group.
    """

    run: str
    method: str
    round: int | None = None
    num_rounds: int = 0
    num_clients: int = 0
    metric_name: str = "accuracy"
    judged_on: str = "held-out examples"
    start: Score | None = None
    end: Score | None = None
    groups: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What the card says beside the history.

    Attributes:
        base_model: a hub's id, or another name that people know it by.
        is_on_hub: whether it is an id.
        is_merged: whether the folder holds a whole model rather than an adapter.
        task: the run's kind.
        lora: rank and alpha, in words.
        loading: Python that loads the model and runs it.
        notes: further paragraphs.
    """

    base_model: str
    is_on_hub: bool
    is_merged: bool
    task: str
    lora: str
    loading: str
    notes: tuple[str, ...] = ()


_PIPELINES = {
    "causal_lm": "text-generation",
    "sequence_classification": "text-classification",
    "image_classification": "image-classification",
}


def card_text(card: Card, history: History) -> str:
    """Return the card as Markdown, with the front matter that the Hugging Face hub reads."""
    parts = [
        _front_matter(card),
        f"# {history.run}",
        _origin(card, history),
        *_scores(history),
        "## Load it",
        f"```python\n{card.loading}\n```",
        *card.notes,
        "## Licence",
        "Not stated yet. The base model's licence holds for what is made from it; name yours here, and as `license:` "
        "at the top, before you share this folder.",
    ]
    return "\n\n".join(parts) + "\n"


def write_card(card: Card, history: History, folder: Path) -> None:
    """Write the card into an exported folder."""
    (folder / CARD_FILE).write_text(card_text(card, history), encoding="utf-8")


def _front_matter(card: Card) -> str:
    lines = [f"library_name: {'transformers' if card.is_merged else 'peft'}"]
    if card.is_on_hub:
        # JSON's strings are YAML's too.
        lines += [f"base_model: {json.dumps(card.base_model)}"]
        lines += [f"base_model_relation: {'finetune' if card.is_merged else 'adapter'}"]
    if card.task in _PIPELINES:
        lines.append(f"pipeline_tag: {_PIPELINES[card.task]}")
    return "\n".join(["---", *lines, "tags:", "- lora", "- federated-learning", "- fedlora", "---"])


def _origin(card: Card, history: History) -> str:
    what = f"{card.base_model} with a LoRA adapter merged into its weights" if card.is_merged else "A LoRA adapter"
    base = "" if card.is_merged else f" of {card.base_model}"
    clients = f"each of {history.num_clients} clients" if history.num_clients else "each client"
    text = (
        f"{what}{base} ({card.lora}), trained by federated learning for {card.task.replace('_', ' ')}: {clients} "
        f"trained on its own data, and the server averaged the adapters with `{history.method}`."
    )
    if history.round is not None:
        text += f" This is the adapter after round {history.round} of {history.num_rounds}."
    return text


def _scores(history: History) -> list[str]:
    rows = [("before training", history.start), (f"after round {history.round}", history.end)]
    rows += [(f"- {group}", score) for group, score in history.groups.items() if len(history.groups) > 1]
    lines = [
        f"| {name} | {score.num_examples} | {score.loss:.4f} | {score.metric:.4f} |"
        for name, score in rows
        if score is not None
    ]
    if not lines:
        return []
    head = [f"| | {history.judged_on} | loss | {history.metric_name} |", "|---|---|---|---|"]
    return ["## Scores", "\n".join([*head, *lines])]
