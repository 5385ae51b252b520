"""Federated data from a user's own Python data sets."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.conversations import (
    conversation_of,
    format_of,
    plain_text,
    prompt_and_answer,
    without_ignored,
)
from fedlora.training.data.examples import (
    Conversation,
    Examples,
    FederatedData,
    Images,
    Inputs,
    Row,
    sorted_vocabulary,
)
from fedlora.training.data.federated import deal_out
from fedlora.training.data.left_aside import left_aside
from fedlora.training.data.pictures import eight_bit, same_channels, square
from fedlora.training.data.source import checked_vocabulary, label_indices
from fedlora.training.partitioning import members

Input = str | Image.Image | npt.NDArray[np.uint8]
Label = int | str
Messages = Sequence[Mapping[str, str]]
Example = tuple[Input, Label] | tuple[str, str] | tuple[Messages, Messages] | str | Conversation | Row
Dataset = Sequence[Example]
Kind = Literal["image_classification", "sequence_classification", "causal_lm", "own"]


@dataclass(frozen=True)
class Given:
    """An example as the user gave it; `where` names it in errors."""

    where: str
    group: str
    example: Any


@dataclass(frozen=True)
class Pair:
    """An input and its label as the user gave them; `where` names the pair in errors."""

    where: str
    group: str
    input: Any
    label: Any


def federated_data_from(
    clients: Mapping[str, Dataset],
    test: Dataset | Mapping[str, Dataset] = (),
    *,
    kind: Kind | None = None,
    data: DataSection | None = None,
    labels: Sequence[str] | None = None,
    image_size: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> FederatedData:
    """Return federated data from data sets that are already in Python.

    A data set is anything with a length and examples under 0, 1, 2 ..., such as a list, a data set of the library
    `datasets`, or a torch data set that leaves its pictures as they are. An example is

    - for a classification a pair of an input and its label. An input is a text, a Pillow picture, or a uint8 array
      (height, width) or (height, width, 3);
    - for a language model a pair (prompt, answer) of texts or of lists of messages, a text, a `Conversation`, or a
      mapping with the columns of one of the formats of files;
    - for a task of one's own any mapping, or a pair as for a classification.

    Args:
        clients: each client's data set, by the client's name.
        test: the held-out set; or several by name, which is then the group under which their scores are reported.
        kind: the run's task.kind; None stands for a classification.
        data: the run's section, which names the columns of mappings for a language model.
        labels: the vocabulary; a label that is a number is an index into it. Without it, the vocabulary is what the
            clients have, numbers in the order of their value.
        image_size: pixels; pictures are resized to a square of it. Not needed for texts.
        validation: the share of each client's examples that it keeps for its own validation, from 0 to below 1.
        seed: the run's; the draw of the validation examples comes from it.

    Raises:
        DataError: an input or label of another kind, a client without examples, a label that is not in the
            vocabulary, or fewer than two labels.
        ValueError: pictures without `image_size`.
    """
    _require_examples(clients)
    training_given = [
        given for name, data_set in clients.items() for given in _given(data_set, f"client {name!r}", name)
    ]
    tests = test if isinstance(test, Mapping) else {"": test}
    test_given = [given for name, data_set in tests.items() for given in _given(data_set, f"test set {name!r}", name)]
    vocabulary: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    if kind == "causal_lm":
        columns = data or DataSection()
        conversations = [_conversation(given, columns) for given in (*training_given, *test_given)]
        notes = _notes([*training_given, *test_given], columns)
        training, held_out = _without_labels(conversations, training_given, test_given)
    elif kind == "own" and isinstance(training_given[0].example, Mapping):
        rows = [_row(given) for given in (*training_given, *test_given)]
        training, held_out = _without_labels(rows, training_given, test_given)
    else:
        vocabulary, training, held_out = _labelled(training_given, test_given, labels, image_size=image_size)
    parts = {str(training.groups[rows[0]]): rows for rows in members(training.groups)}
    return FederatedData(
        labels=vocabulary,
        clients=deal_out(training, parts, None, validation=validation, seed=seed),
        test=held_out.by_label(),
        fingerprint=_fingerprint(vocabulary, training, held_out),
        notes=notes,
    )


def _notes(examples: list[Given], columns: DataSection) -> tuple[str, ...]:
    """Return what of the examples that are mappings is left aside, in a line each."""
    rows: dict[str, list[Row]] = {}
    for given in examples:
        if isinstance(given.example, Mapping):
            row = without_ignored(given.example, columns)
            rows.setdefault(format_of(row, columns, where=given.where), []).append(row)
    return tuple(note for found, those in rows.items() for note in left_aside(those, columns, format_name=found))


def _labelled(
    training: list[Given], test: list[Given], labels: Sequence[str] | None, *, image_size: int | None
) -> tuple[tuple[str, ...], Examples, Examples]:
    """Return the vocabulary, and the examples of the clients and of the test set with their labels."""
    pairs = [_pair(given) for given in (*training, *test)]
    words = [_word(pair, labels) for pair in pairs]
    split = len(training)
    vocabulary = tuple(labels) if labels is not None else sorted_vocabulary(words[:split])
    checked_vocabulary(vocabulary, origin="the clients")
    inputs = _inputs(pairs, image_size=image_size)
    of_clients = label_indices(words[:split], vocabulary, origin="the clients")
    of_test = label_indices(words[split:], vocabulary, origin="the test set")
    return (
        vocabulary,
        Examples(inputs[:split], of_clients, _groups(training)),
        Examples(inputs[split:], of_test, _groups(test)),
    )


def _without_labels(
    inputs: list[Conversation] | list[Row], training: list[Given], test: list[Given]
) -> tuple[Examples, Examples]:
    """Return the examples of the clients and of the test set, whose inputs follow one another in `inputs`."""
    split = len(training)
    return (
        Examples(inputs[:split], np.zeros(split, dtype=np.int64), _groups(training)),
        Examples(inputs[split:], np.zeros(len(test), dtype=np.int64), _groups(test)),
    )


def _groups(given: list[Given]) -> npt.NDArray[np.str_]:
    return np.array([one.group for one in given], dtype=np.str_)


def _conversation(given: Given, columns: DataSection) -> Conversation:
    match given.example:
        case Conversation():
            return given.example
        case str():
            return plain_text(given.example, what=given.where)
        case Mapping():
            return conversation_of(given.example, columns, where=given.where)
        case (prompt, answer):
            of_prompt, of_answer = f"{given.where}: the prompt", f"{given.where}: the answer"
            return prompt_and_answer(prompt, answer, of_prompt=of_prompt, of_answer=of_answer)
    raise DataError(
        f"{given.where}: a {type(given.example).__name__}; expected a pair (prompt, answer), a text, a Conversation, "
        "or a mapping such as {'messages': [...]}"
    )


def _row(given: Given) -> Row:
    if not isinstance(given.example, Mapping):
        raise DataError(f"{given.where}: a {type(given.example).__name__}; expected a mapping, as the first example")
    return given.example


def unlabelled(inputs: Sequence[Input], *, image_size: int | None) -> Examples:
    """Return texts, or pictures resized to `image_size` pixels, as examples that all have the label 0.

    Raises:
        DataError: an input is of another kind than the first.
    """
    pairs = [Pair(f"input {index}", "", given, 0) for index, given in enumerate(inputs)]
    labels = np.zeros(len(pairs), dtype=np.int64)
    return Examples(_inputs(pairs, image_size=image_size), labels, np.full(len(pairs), "", dtype=np.str_))


def _given(data_set: Dataset, origin: str, group: str) -> list[Given]:
    # By number: a torch data set need not end an iteration.
    return [Given(f"{origin}, example {index}", group, data_set[index]) for index in range(len(data_set))]


def _pair(given: Given) -> Pair:
    example = given.example
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise DataError(f"{given.where}: a {type(example).__name__}; expected a pair (input, label)")
    return Pair(given.where, given.group, *example)


def _require_examples(clients: Mapping[str, Dataset]) -> None:
    if not clients:
        raise DataError("no client; expected a data set for each client's name")
    for name, data_set in clients.items():
        if len(data_set) == 0:
            raise DataError(f"client {name!r} has no examples; remove it, or give it some")


def _word(pair: Pair, labels: Sequence[str] | None) -> str:
    """Return the pair's label as a word of the vocabulary."""
    if isinstance(pair.label, str):
        return pair.label
    if not isinstance(pair.label, int | np.integer):
        raise DataError(f"{pair.where}: a label of type {type(pair.label).__name__}; expected int or str")
    if labels is None:
        return str(int(pair.label))
    if not 0 <= pair.label < len(labels):
        raise DataError(f"{pair.where}: label {pair.label}; expected 0 to {len(labels) - 1}, an index into labels")
    return labels[int(pair.label)]


def _inputs(pairs: list[Pair], *, image_size: int | None) -> Inputs:
    """Return all inputs: texts where the first is one, else pictures (n, image_size, image_size, channels)."""
    if isinstance(pairs[0].input, str):
        for pair in pairs:
            if not isinstance(pair.input, str):
                raise DataError(f"{pair.where}: a {type(pair.input).__name__} among texts; expected str")
        return [pair.input for pair in pairs]
    if image_size is None:
        raise ValueError("pictures need image_size, such as config.task.image_size")
    return np.stack(same_channels([_picture(pair, image_size) for pair in pairs]))


def _picture(pair: Pair, image_size: int) -> Images:
    """Return the pair's picture as (image_size, image_size, channels)."""
    value = pair.input
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] in (1, 3))):
            raise DataError(
                f"{pair.where}: {value.dtype} of shape {value.shape}; "
                "expected uint8 (height, width) or (height, width, 3), values 0 to 255"
            )
        value = Image.fromarray(value[:, :, 0] if value.shape[2:] == (1,) else value)
    if not isinstance(value, Image.Image):
        raise DataError(
            f"{pair.where}: a {type(value).__name__}; expected a Pillow picture or a uint8 array, as the first example"
        )
    try:
        return square(eight_bit(value), image_size)
    except (OSError, ValueError) as error:
        raise DataError(f"{pair.where}: cannot be read as a picture ({error})") from error


def _fingerprint(vocabulary: tuple[str, ...], *parts: Examples) -> str:
    """Return the hex sha256 over the vocabulary and over each part's inputs, labels and groups."""
    digest = hashlib.sha256(repr(vocabulary).encode())
    for part in parts:
        digest.update(repr(part.inputs).encode() if isinstance(part.inputs, list) else part.inputs.tobytes())
        digest.update(part.labels.tobytes())
        digest.update(repr(part.groups.tolist()).encode())
    return digest.hexdigest()
