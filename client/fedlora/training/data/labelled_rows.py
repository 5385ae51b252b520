"""Rows given from Python, such as those of the library `datasets`, as pairs of an input and its label."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.columns import value_in
from fedlora.training.data.examples import Row

_PICTURES = ("image", "img")  # as data sets of pictures name their column


def label_names_of(data_set: object, column: str) -> Sequence[str] | None:
    """Return what the numbers in a column stand for, if the data set says so as those of `datasets` do."""
    features = getattr(data_set, "features", None)
    feature = features.get(column) if isinstance(features, Mapping) else None
    names: Sequence[str] | None = getattr(feature, "names", None)
    return names


def plain_label(label: Any) -> Any:
    """Return a label, which numpy or torch may hold as an array without dimensions, as Python's own value."""
    return label.item() if getattr(label, "ndim", None) == 0 else label


def labelled_row(
    row: Row, columns: DataSection, names: Sequence[str] | None, *, is_text: bool | None, where: str
) -> tuple[Any, Any]:
    """Return a row's text or picture, and its label: a number as the name that it stands for.

    Args:
        is_text: None where a column of texts tells.

    Raises:
        DataError: it lacks a column, or the label has no name.
    """
    is_text = columns.text in row if is_text is None else is_text
    names_of_inputs = (columns.text,) if is_text else (columns.image, *_PICTURES)
    column = next((name for name in names_of_inputs if name in row), names_of_inputs[0])
    given = value_in(row, column, key="data.text" if is_text else "data.image", where=where)
    label = plain_label(value_in(row, columns.label, key="data.label", where=where))
    if names is None or isinstance(label, bool) or not isinstance(label, int):
        return given, label
    if not 0 <= label < len(names):  # -1 is the label that a test set keeps to itself
        raise DataError(
            f"{where}: label {label}; expected 0 to {len(names) - 1}, a number of the data set's labels; "
            "remove the example if it has none"
        )
    return given, names[label]
