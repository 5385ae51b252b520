"""What a run will learn from, before it runs: examples as the model reads them, their lengths, and who holds how many.

Of the model only the tokenizer is needed.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import transformers

from fedlora.common.config import CausalLm, RunConfig, SequenceClassification
from fedlora.common.errors import DataError, ModelError, one_line
from fedlora.common.fates import CUT
from fedlora.common.resources import resolve_path
from fedlora.common.spelling import spelled
from fedlora.models.checkpoint import UNREADABLE, require_hub_id
from fedlora.models.model_loading import load_tokenizer
from fedlora.training.data import ClientData, Examples, FederatedData, equal_parts, load_federated_data
from fedlora.training.data.examples import Conversation, Note
from fedlora.training.data.source import enumeration
from fedlora.training.tasks.encoding import Encoded, encode_all, fate_of, fitted
from fedlora.training.tasks.rendering import render, render_all
from fedlora.training.tasks.rendering_notes import rendering_notes
from fedlora.training.tasks.template_messages import shown_notes

_EXAMINED = 1000


@dataclass(frozen=True)
class Piece:
    """A stretch of an example's text, and whether its tokens are learned."""

    text: str
    is_learned: bool


@dataclass(frozen=True)
class ShownExample:
    """One example.

    Attributes:
        client, group: whose it is.
        label: of a classification, else None.
        facts: more about it, in words, such as its number of tokens.
        pieces: its text; none of a picture.
    """

    client: str
    group: str
    label: str | None
    facts: tuple[str, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens in `num_examined` examples, begin and end tokens included.

    Attributes:
        num_cut, num_dropped: those that are longer than `max_length`, or of which that leaves nothing to learn.
    """

    num_examined: int
    smallest: int
    median: float
    largest: int
    max_length: int
    num_cut: int
    num_dropped: int


@dataclass(frozen=True)
class ClientCounts:
    """How many examples a client holds, those for training also by label where there are labels."""

    training: int
    validation: int
    by_label: Mapping[str, int]


@dataclass(frozen=True)
class DataPreview:
    """What there is to see; `lengths` is None for what has no tokens; `notes` say how the data are read."""

    clients: Mapping[str, ClientCounts]
    num_test: int
    labels: tuple[str, ...]
    examples: tuple[ShownExample, ...]
    lengths: Lengths | None
    notes: tuple[Note, ...] = ()


def preview_data(config: RunConfig, *, client: str | None = None, num_examples: int = 3) -> DataPreview:
    """Return a preview of the run's data.

    Args:
        client: whose examples are shown and examined; None for everyone's.
        num_examples: how many are shown, spread over clients and over what each has.

    Raises:
        FedloraError: the data cannot be used, or the tokenizer is missing or cannot render them.
    """
    data = load_federated_data(config)
    client = None if client is None else spelled(client)
    if client is not None and client not in data.clients:
        raise DataError(f"--client: no client is named {client!r}; the run has {enumeration(data.clients)}")
    chosen = dict(data.clients) if client is None else {client: data.clients[client]}
    examples, holders = _spread(chosen, _EXAMINED)
    shown = equal_parts(holders, num_examples)
    lengths: Lengths | None = None
    notes = data.notes
    pieces: list[tuple[Piece, ...]]
    if isinstance(config.task, CausalLm):
        task, tokenizer = config.task, _tokenizer(config)
        conversations = [given for given in examples.inputs if isinstance(given, Conversation)]
        rendered = render_all(conversations, tokenizer, task.chat_template, system=task.system)
        encoded = encode_all(rendered, tokenizer, special_tokens=task.special_tokens)
        lines = shown_notes(
            conversations,
            [one.text for one in rendered],
            lambda one: render(one, tokenizer, task.chat_template, system=task.system).text,
        )
        lines += rendering_notes(rendered, encoded, tokenizer, task)
        notes += tuple(map(Note, lines))
        cuts = task.too_long == "cut"
        kept = [fitted(one, max_length=task.max_length, cuts=cuts) for one in encoded]
        codes = [
            fate_of(one, left, max_length=task.max_length, cuts=cuts) for one, left in zip(encoded, kept, strict=True)
        ]
        fates = ["dropped" if code not in ("", CUT) else code for code in codes]
        counts = [len(one.token_ids) for one in encoded]
        lengths = _lengths(counts, fates, config.task.max_length)
        pieces = [pieces_of(kept[row] or encoded[row], tokenizer) for row in shown]
        facts = [_conversation_facts(examples.inputs[row], encoded[row], fates[row]) for row in shown]
    elif isinstance(config.task, SequenceClassification):
        tokenizer = _tokenizer(config)
        counts = [len(ids) for ids in tokenizer(list(examples.inputs), split_special_tokens=True)["input_ids"]]
        fates = ["cut" if count > config.task.max_length else "" for count in counts]
        lengths = _lengths(counts, fates, config.task.max_length)
        pieces = [(Piece(str(examples.inputs[row]), is_learned=False),) for row in shown]
        facts = [_with_fate((f"{counts[row]:,} tokens",), fates[row]) for row in shown]
    else:
        pieces = [_row_or_nothing(examples.inputs[row]) for row in shown]
        facts = [_size(examples.inputs[row]) for row in shown]
    return DataPreview(
        clients={name: _counts(held, data) for name, held in data.clients.items()},
        num_test=len(data.test),
        labels=data.labels,
        examples=tuple(
            ShownExample(
                client=str(holders[row]),
                group=str(examples.groups[row]),
                label=data.labels[examples.labels[row]] if data.labels else None,
                facts=facts[place],
                pieces=pieces[place],
            )
            for place, row in enumerate(shown)
        ),
        lengths=lengths,
        notes=notes,
    )


def pieces_of(encoded: Encoded, tokenizer: Any) -> tuple[Piece, ...]:
    """Return the text of tokens, in stretches of those that are learned and those that are not."""
    pieces: list[Piece] = []
    done, text = 0, ""
    for is_learned, run in groupby(encoded.is_answer):
        done += len(list(run))
        # Decoded by themselves, tokens in the middle of a text may lose the space before them.
        longer: str = tokenizer.decode(encoded.token_ids[:done], clean_up_tokenization_spaces=False)
        pieces.append(Piece(longer[len(text) :], is_learned))
        text = longer
    return tuple(pieces)


def _spread(clients: Mapping[str, ClientData], num_examples: int) -> tuple[Examples, np.ndarray]:
    """Return training examples, as many of each client and evenly spaced, and the name of each one's holder (n,)."""
    names = np.array(list(clients), dtype=np.object_)
    holders = np.repeat(names, [len(held.training) for held in clients.values()])
    rows = equal_parts(holders, num_examples)
    begins = dict(zip(clients, np.cumsum([0, *(len(held.training) for held in clients.values())]), strict=False))
    parts = [held.training.take(rows[holders[rows] == name] - begins[name]) for name, held in clients.items()]
    return _joined(parts), holders[rows]


def _joined(parts: Sequence[Examples]) -> Examples:
    inputs: Any = (
        [given for part in parts for given in part.inputs]
        if isinstance(parts[0].inputs, list)
        else np.concatenate([np.asarray(part.inputs) for part in parts])
    )
    return Examples(
        inputs, np.concatenate([part.labels for part in parts]), np.concatenate([part.groups for part in parts])
    )


def _tokenizer(config: RunConfig) -> Any:
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    name = config.model.name
    found = resolve_path(name, error=ModelError)
    if isinstance(found, str):
        require_hub_id(found)
    try:
        return load_tokenizer(found, name=name, revision=config.model.revision)
    except UNREADABLE as error:
        raise ModelError(f"model.name: cannot load the tokenizer of {name}: {one_line(error)}") from error


def _conversation_facts(given: object, encoded: Encoded, fate: str) -> tuple[str, ...]:
    style = given.style if isinstance(given, Conversation) else ""
    return _with_fate(
        (style, f"{len(encoded.token_ids):,} tokens", f"{sum(encoded.is_answer[1:]):,} of them learned"), fate
    )


def _with_fate(facts: tuple[str, ...], fate: str) -> tuple[str, ...]:
    return (*facts, f"too long: {fate}") if fate else facts


def _lengths(counts: list[int], fates: list[str], max_length: int) -> Lengths:
    return Lengths(
        num_examined=len(counts),
        smallest=min(counts),
        median=statistics.median(counts),
        largest=max(counts),
        max_length=max_length,
        num_cut=fates.count("cut"),
        num_dropped=fates.count("dropped"),
    )


def _row_or_nothing(given: object) -> tuple[Piece, ...]:
    if not isinstance(given, Mapping):
        return ()
    return (Piece("\n".join(f"{column} = {value!r}" for column, value in given.items()), is_learned=False),)


def _size(given: object) -> tuple[str, ...]:
    if not isinstance(given, np.ndarray):
        return ()
    height, width, channels = given.shape
    return (f"{width} x {height} pixels", "grey" if channels == 1 else "colour")


def _counts(held: ClientData, data: FederatedData) -> ClientCounts:
    found = Counter(held.training.labels.tolist())
    by_label = {label: found[index] for index, label in enumerate(data.labels)}
    return ClientCounts(len(held.training), len(held.validation), by_label)
