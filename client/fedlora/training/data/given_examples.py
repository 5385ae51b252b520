"""One example as it is given from Python: its input and its label, a conversation, or a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError, one_line
from fedlora.training.data.columns import label_in
from fedlora.training.data.conversations import conversation_of, plain_text, prompt_and_answer
from fedlora.training.data.examples import Conversation, Images, Inputs, Row
from fedlora.training.data.given_pictures import opened_input
from fedlora.training.data.labelled_rows import label_names_of, labelled_row, plain_label
from fedlora.training.data.picture_reading import PictureReading, Wanted, read_pictures
from fedlora.training.data.pictures import Opened, same_channels

# A torch tensor too, whose type is not imported for this.
Input = str | bytes | Image.Image | npt.NDArray[Any] | Mapping[str, Any]
Label = int | str
Messages = Sequence[Mapping[str, str]]
Example = tuple[Input, Label] | tuple[str, str] | tuple[Messages, Messages] | str | Conversation | Row
Dataset = Sequence[Example]


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


def all_given(data_set: Dataset, origin: str, group: str, label: str) -> list[Given]:
    """Return the examples of a data set; of one of the library `datasets` with the names of its column `label`."""
    names = label_names_of(data_set, label)
    # By number: a torch data set need not end an iteration.
    return [Given(f"{origin}, example {index}", group, data_set[index], names) for index in range(len(data_set))]


def pair_of(given: Given, columns: DataSection, *, is_text: bool | None) -> Pair:
    """Return an example of a classification as its input and its label.

    Args:
        is_text: whether the input is a text; None where a row's columns tell.

    Raises:
        DataError: it is neither a pair nor a row with the columns of both.
    """
    example = given.example
    if isinstance(example, Mapping):
        found = labelled_row(example, columns, given.label_names, is_text=is_text, where=given.where)
        return Pair(given.where, given.group, *found)
    if not isinstance(example, tuple | list) or len(example) != 2:
        expected = columns.image if is_text is False else columns.text
        raise DataError(
            f"{given.where}: a {type(example).__name__}; expected a pair (input, label), or a mapping with the columns "
            f"{expected!r} and {columns.label!r}"
        )
    found, label = example
    return Pair(given.where, given.group, found, plain_label(label))


def conversation_in(given: Given, columns: DataSection) -> Conversation:
    """Return an example of a language model as the conversation that it is.

    Raises:
        DataError: it is none, or malformed.
    """
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


def row_in(given: Given) -> Row:
    """Return an example of a task of one's own, a mapping.

    Raises:
        DataError: it is none.
    """
    if not isinstance(given.example, Mapping):
        raise DataError(f"{given.where}: a {type(given.example).__name__}; expected a mapping, as the first example")
    return given.example


def word_of(pair: Pair, labels: Sequence[str] | None) -> str:
    """Return the pair's label as a word of the vocabulary.

    Raises:
        DataError: it is of another kind, missing, or an index into something else.
    """
    if isinstance(pair.label, str):
        return label_in(pair.label, labels or (), f"{pair.where}: the label")
    if not isinstance(pair.label, int):
        raise DataError(f"{pair.where}: a label of type {type(pair.label).__name__}; expected int or str")
    if labels is None:
        return label_in(int(pair.label), (), f"{pair.where}: the label")
    if not 0 <= pair.label < len(labels):
        raise DataError(f"{pair.where}: label {pair.label}; expected 0 to {len(labels) - 1}, an index into labels")
    return labels[int(pair.label)]


def inputs_of(pairs: list[Pair], *, image_size: int | None, wanted: Wanted) -> tuple[Inputs, PictureReading | None]:
    """Return all inputs: texts where the first is one, else pictures (n, image_size, image_size, channels).

    Raises:
        DataError: one is of another kind than the first, or cannot be read.
        ValueError: pictures without `image_size`.
    """
    if isinstance(pairs[0].input, str):
        for pair in pairs:
            if not isinstance(pair.input, str):
                raise DataError(f"{pair.where}: a {type(pair.input).__name__} among texts; expected str")
        return [pair.input for pair in pairs], None
    if image_size is None:
        raise ValueError("pictures need image_size, such as config.task.image_size")
    pictures: list[Images] = [np.empty(0, np.uint8)] * len(pairs)
    reading = read_pictures(
        [pair.where for pair in pairs],
        lambda index: _opened(pairs[index], image_size),
        pictures.__setitem__,
        image_size=image_size,
        wanted=wanted,
    )
    return np.stack(same_channels(pictures)), reading


def _opened(pair: Pair, image_size: int) -> Opened:
    try:
        return opened_input(pair.input, image_size)
    except TypeError as error:
        raise DataError(
            f"{pair.where}: a {type(pair.input).__name__}; expected a Pillow picture, an array or a tensor, or a "
            "file's bytes, as the first example"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{pair.where}: {one_line(error)}") from error
