"""From the rows of a table to examples: the columns that the run file names."""

import json
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.examples import Inputs, Row
from fedlora.training.data.source import Source, enumeration
from fedlora.training.data.tables import PlacedRow, Table

_SHOWN_AT_MOST = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


def labelled_texts(table: Table, data: DataSection) -> Source:
    """Return the texts of a table with their labels.

    White space around all but the text is dropped.

    Raises:
        DataError: a column or a value is missing, or is of another kind.
    """
    texts = [text_in(placed.row, data.text, key="data.text", where=placed.where) for placed in table.rows]
    return with_columns(texts, table, data, label_key="data.label")


def with_columns(inputs: Inputs, table: Table, data: DataSection, *, label_key: str | None) -> Source:
    """Return what was made of a table's rows, one by one, with their labels, groups and values to split by.

    Args:
        label_key: what names the labels' column, for errors; None to do without labels.

    Raises:
        DataError: a column or a value is missing, or is of another kind.
    """
    nothing = np.full(len(table.rows), "", dtype=np.str_)
    return Source(
        inputs=inputs,
        labels=nothing if label_key is None else _words(table.rows, data.label, label_key),
        groups=nothing if data.group is None else _words(table.rows, data.group, "data.group"),
        split_by=None if data.split_by is None else _words(table.rows, data.split_by, "data.split_by"),
        fingerprint=table.fingerprint,
    )


def value_in(row: Row, column: str, *, key: str, where: str) -> object:
    """Return a row's value in a column that is named by `key`.

    Raises:
        DataError: there is no such column.
    """
    if column not in row:
        raise DataError(f"{where}: no column {column!r} ({key}); the columns are {enumeration(row)}")
    return row[column]


def text_in(row: Row, column: str, *, key: str, where: str) -> str:
    """Return a row's text in a column, as it is.

    Raises:
        DataError: there is no such column, or no text in it.
    """
    return checked_text(value_in(row, column, key=key, where=where), f"{where}: {column!r}")


def checked_text(value: object, what: str) -> str:
    """Return `value`, which must be text with something in it; `what` names it for errors."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{what} is empty; fill it in or remove the line")
    if not isinstance(value, str):
        raise DataError(f"{what} is {shown(value)}; expected text")
    if _SURROGATE.search(value):
        raise DataError(f"{what} has half a surrogate pair, which is no character; remove it")
    return value


def shown(value: object) -> str:
    """Return a value as JSON has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_AT_MOST else f"{text[:_SHOWN_AT_MOST]}..."


def _words(rows: Iterable[PlacedRow], column: str, key: str) -> npt.NDArray[np.str_]:
    """Return a column's values, (n,), as words: text without white space around it, whole numbers, true and false."""
    words = []
    for placed in rows:
        value = value_in(placed.row, column, key=key, where=placed.where)
        if isinstance(value, bool | int):
            value = json.dumps(value)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{placed.where}: {column!r} is {shown(value)}; expected text or a whole number")
        words.append(checked_text(value, f"{placed.where}: {column!r}").strip())
    return np.array(words, dtype=np.str_)
