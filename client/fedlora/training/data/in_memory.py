"""Federated data from a user's own Python data sets."""

import hashlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.common.spelling import checked_names
from fedlora.training.data.columns import label_in
from fedlora.training.data.conversations import conversation_of, plain_text, prompt_and_answer
from fedlora.training.data.examples import (
    Conversation,
    Examples,
    FederatedData,
    Images,
    Inputs,
    Row,
    Words,
    sorted_vocabulary,
    words_of,
)
from fedlora.training.data.federated import deal_out
from fedlora.training.data.labelled_rows import label_names_of, labelled_row, plain_label
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
    """An example as the user gave it.

    Attributes:
        where: names it in errors.
        label_names: of a row whose label is a number, what the number stands for, if its data set says so.
    """

    where: str
    group: str
    example: Any
    label_names: Sequence[str] | None = None


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
      (height, width) or (height, width, 3). Or a mapping with the columns of `data`, such as a row of `datasets`,
      pictures in the column "image" or "img";
    - for a language model a pair (prompt, answer) of texts or of lists of messages, a text, a `Conversation`, or a
      mapping with the columns of one of the formats of files;
    - for a task of one's own any mapping, or a pair as for a classification.

    Args:
        clients: each client's data set, by the client's name.
        test: the held-out set; or several by name, which is then the group under which their scores are reported.
        kind: the run's task.kind; None stands for a classification.
        data: the run's section, which names the columns of mappings.
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
    columns = data or DataSection()
    training_given = [
        given
        for name, data_set in clients.items()
        for given in _given(data_set, f"client {name!r}", name, columns.label)
    ]
    tests = test if isinstance(test, Mapping) else {"": test}
    test_given = [
        given
        for name, data_set in tests.items()
        for given in _given(data_set, f"test set {name!r}", name, columns.label)
    ]
    vocabulary: tuple[str, ...] = ()
    if kind == "causal_lm":
        conversations = [_conversation(given, columns) for given in (*training_given, *test_given)]
        training, held_out = _without_labels(conversations, training_given, test_given)
    elif kind == "own" and isinstance(training_given[0].example, Mapping):
        rows = [_row(given) for given in (*training_given, *test_given)]
        training, held_out = _without_labels(rows, training_given, test_given)
    else:
        vocabulary, training, held_out = _labelled(training_given, test_given, labels, columns, image_size=image_size)
    parts = {str(training.groups[rows[0]]): rows for rows in members(training.groups)}
    return FederatedData(
        labels=vocabulary,
        clients=deal_out(training, parts, None, validation=validation, seed=seed),
        test=held_out.by_label(),
        fingerprint=_fingerprint(vocabulary, training, held_out),
    )


def _labelled(
    training: list[Given],
    test: list[Given],
    labels: Sequence[str] | None,
    columns: DataSection,
    *,
    image_size: int | None,
) -> tuple[tuple[str, ...], Examples, Examples]:
    """Return the vocabulary, and the examples of the clients and of the test set with their labels."""
    pairs = [_pair(given, columns) for given in (*training, *test)]
    named = None if labels is None else checked_vocabulary(tuple(labels), origin="labels")
    words = [_word(pair, named) for pair in pairs]
    split = len(training)
    vocabulary = named or checked_vocabulary(sorted_vocabulary(words[:split]), origin="the clients")
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


def _groups(given: list[Given]) -> Words:
    return words_of(one.group for one in given)


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


def _given(data_set: Dataset, origin: str, group: str, label: str) -> list[Given]:
    """Return the examples of a data set; of one of the library `datasets` with the names of its column `label`."""
    names = label_names_of(data_set, label)
    # By number: a torch data set need not end an iteration.
    return [Given(f"{origin}, example {index}", group, data_set[index], names) for index in range(len(data_set))]


def _pair(given: Given, columns: DataSection) -> Pair:
    example = given.example
    if isinstance(example, Mapping):
        found = labelled_row(example, columns, given.label_names, where=given.where)
        return Pair(given.where, given.group, *found)
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise DataError(
            f"{given.where}: a {type(example).__name__}; expected a pair (input, label), or a mapping with the columns "
            f"{columns.text!r} and {columns.label!r}"
        )
    found, label = example
    return Pair(given.where, given.group, found, plain_label(label))


def _require_examples(clients: Mapping[str, Dataset]) -> None:
    if not clients:
        raise DataError("no client; expected a data set for each client's name")
    for name, data_set in clients.items():
        held: object = data_set
        if not isinstance(held, Sized) or (isinstance(held, Mapping) and 0 not in held):
            raise DataError(
                f"client {name!r} has a {type(data_set).__name__}; expected a data set, with a length and examples "
                "under 0, 1, 2 ...; of several splits give one"
            )
        if len(data_set) == 0:
            raise DataError(f"client {name!r} has no examples; remove it, or give it some")
    try:
        checked_names(tuple(clients))
    except ValueError as error:
        raise DataError(f"clients {error}") from error


def _word(pair: Pair, labels: Sequence[str] | None) -> str:
    """Return the pair's label as a word of the vocabulary."""
    if isinstance(pair.label, str):
        return label_in(pair.label, labels or (), f"{pair.where}: the label")
    if not isinstance(pair.label, int):
        raise DataError(f"{pair.where}: a label of type {type(pair.label).__name__}; expected int or str")
    if labels is None:
        return label_in(int(pair.label), (), f"{pair.where}: the label")
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
