"""Federated data from a user's own Python data sets."""

import hashlib
from collections.abc import Mapping, Sequence, Sized
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.common.spelling import checked_names
from fedlora.training.data.conversations import (
    format_of,
    without_ignored,
)
from fedlora.training.data.examples import (
    Conversation,
    Examples,
    FederatedData,
    Note,
    Row,
    Words,
    sorted_vocabulary,
    words_of,
)
from fedlora.training.data.federated import deal_out
from fedlora.training.data.given_examples import (
    Dataset,
    Given,
    Input,
    Pair,
    all_given,
    conversation_in,
    inputs_of,
    pair_of,
    row_in,
    word_of,
)
from fedlora.training.data.given_splits import refuse_clients_named_as_splits
from fedlora.training.data.left_aside import left_aside
from fedlora.training.data.picture_reading import PictureReading, Wanted, notes_on
from fedlora.training.data.source import checked_vocabulary, label_indices
from fedlora.training.partitioning import members

Kind = Literal["image_classification", "sequence_classification", "causal_lm", "own"]


def federated_data_from(
    clients: Mapping[str, Dataset],
    test: Dataset | Mapping[str, Dataset] = (),
    *,
    kind: Kind | None = None,
    data: DataSection | None = None,
    labels: Sequence[str] | None = None,
    image_size: int | None = None,
    pixel_range: Wanted = "auto",
    validation: float = 0.1,
    seed: int = 0,
) -> FederatedData:
    """Return federated data from data sets that are already in Python.

    A data set is anything with a length and examples under 0, 1, 2 ..., such as a list, a data set of the library
    `datasets`, or a torch data set that does not normalise its pictures. An example is

    - for a classification a pair of an input and its label, or a mapping with the columns of both. An input is a text,
      a Pillow picture, a picture file's bytes, or an array or a tensor (height, width), (height, width, channels) or
      (channels, height, width), uint8 or of other numbers, whose range is then `pixel_range`;
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
        pixel_range: black and white of pictures deeper than 8 bits; "auto" to find them from all pictures.
        validation: the share of each client's examples that it keeps for its own validation, from 0 to below 1.
        seed: the run's; the draw of the validation examples comes from it.

    Raises:
        DataError: an input or label of another kind, a client without examples, a label that is not in the
            vocabulary, or fewer than two labels.
        ValueError: pictures without `image_size`.
    """
    columns = data or DataSection()
    _require_examples(clients)
    refuse_clients_named_as_splits(clients, columns.splits)
    training_given = [
        given
        for name, data_set in clients.items()
        for given in all_given(data_set, f"client {name!r}", name, columns.label)
    ]
    tests = test if isinstance(test, Mapping) else {"": test}
    test_given = [
        given
        for name, data_set in tests.items()
        for given in all_given(data_set, f"test set {name!r}", name, columns.label)
    ]
    vocabulary: tuple[str, ...] = ()
    reading: PictureReading | None = None
    notes: tuple[Note, ...] = ()
    if kind == "causal_lm":
        conversations = [conversation_in(given, columns) for given in (*training_given, *test_given)]
        notes = _notes([*training_given, *test_given], columns)
        training, held_out = _without_labels(conversations, training_given, test_given)
    elif kind == "own" and isinstance(training_given[0].example, Mapping):
        rows = [row_in(given) for given in (*training_given, *test_given)]
        training, held_out = _without_labels(rows, training_given, test_given)
    else:
        split = len(training_given)
        is_text = None if kind is None else kind == "sequence_classification"
        pairs = [pair_of(given, columns, is_text=is_text) for given in (*training_given, *test_given)]
        vocabulary, indices = _vocabulary_and_labels(pairs, split, labels)
        inputs, reading = inputs_of(pairs, image_size=image_size, wanted=pixel_range)
        training = Examples(inputs[:split], indices[:split], _groups(training_given))
        held_out = Examples(inputs[split:], indices[split:], _groups(test_given))
    parts = {str(training.groups[rows[0]]): rows for rows in members(training.groups)}
    return FederatedData(
        labels=vocabulary,
        clients=deal_out(training, parts, None, validation=validation, seed=seed),
        test=held_out.by_label(),
        fingerprint=_fingerprint(vocabulary, training, held_out),
        notes=notes if reading is None else tuple(notes_on(reading, origin="pictures")),
        pixel_range=None if reading is None else reading.ends,
    )


def _notes(examples: list[Given], columns: DataSection) -> tuple[Note, ...]:
    """Return what of the examples that are mappings is left aside."""
    rows: dict[str, list[Row]] = {}
    for given in examples:
        if isinstance(given.example, Mapping):
            row = without_ignored(given.example, columns)
            rows.setdefault(format_of(row, columns, where=given.where), []).append(row)
    lines = (line for found, those in rows.items() for line in left_aside(those, columns, format_name=found))
    return tuple(Note(line, is_warning=True) for line in lines)


def _vocabulary_and_labels(
    pairs: list[Pair], num_training: int, labels: Sequence[str] | None
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the vocabulary, and each pair's index into it, (n,); the clients' pairs come first."""
    named = None if labels is None else checked_vocabulary(tuple(labels), origin="labels")
    words = [word_of(pair, named) for pair in pairs]
    vocabulary = named or checked_vocabulary(sorted_vocabulary(words[:num_training]), origin="the clients")
    of_clients = label_indices(words[:num_training], vocabulary, origin="the clients")
    of_test = label_indices(words[num_training:], vocabulary, origin="the test set")
    return vocabulary, np.concatenate([of_clients, of_test])


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


def unlabelled(inputs: Sequence[Input], *, image_size: int | None, pixel_range: Wanted = None) -> Examples:
    """Return texts, or pictures resized to `image_size` pixels, as examples that all have the label 0.

    Args:
        pixel_range: black and white of pictures that are deeper than 8 bits; None where there were none in training.

    Raises:
        DataError: an input is of another kind than the first, or deeper than 8 bits without a range.
    """
    pairs = [Pair(f"input {index}", "", given, 0) for index, given in enumerate(inputs)]
    labels = np.zeros(len(pairs), dtype=np.int64)
    given, _ = inputs_of(pairs, image_size=image_size, wanted=pixel_range)
    return Examples(given, labels, np.full(len(pairs), "", dtype=np.str_))


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


def _fingerprint(vocabulary: tuple[str, ...], *parts: Examples) -> str:
    """Return the hex sha256 over the vocabulary and over each part's inputs, labels and groups."""
    digest = hashlib.sha256(repr(vocabulary).encode())
    for part in parts:
        digest.update(repr(part.inputs).encode() if isinstance(part.inputs, list) else part.inputs.tobytes())
        digest.update(part.labels.tobytes())
        digest.update(repr(part.groups.tolist()).encode())
    return digest.hexdigest()
