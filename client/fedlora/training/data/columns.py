"""From the rows of a table to examples: the columns that the run file names."""

import json
import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.common.spelling import spelled, visible, what_is_no_text
from fedlora.training.data.bad_rows import for_each
from fedlora.training.data.examples import Inputs, Row
from fedlora.training.data.source import Source, enumeration
from fedlora.training.data.tables import PlacedRow, Table

_SHOWN_AT_MOST = 60
# What programs write where a value is missing, in whatever capitals; "none" may be a label, and "NA" a region.
_MISSING = frozenset(("nan", "-nan", "null", "nat", "<na>", "n/a", "#n/a", "None"))
_MISSING_LABELS = _MISSING | {"NA"}
_REMEDY = "fill it in or remove the line"

_WordsOfRow = tuple[str, str, str]


def labelled_texts(table: Table, data: DataSection) -> Source:
    """Return the texts of a table with their labels.

    White space around all but the text is dropped.

    Raises:
        DataError: a column is missing, or values are missing or of another kind: how many, and the first of them.
    """
    _require_columns(table, {"data.text": data.text})

    def text(placed: PlacedRow) -> str:
        return text_in(placed.row, data.text, key="data.text", where=placed.where)

    if _lacking(table, columns := _word_columns(data, "data.label")):
        for_each(table.rows, text)
        _require_columns(table, columns)
    words = _words_reader(data, "data.label")
    found = for_each(table.rows, lambda placed: (text(placed), words(placed)))
    return _source([given for given, _ in found], [of_row for _, of_row in found], table, data)


def with_columns(inputs: Inputs, table: Table, data: DataSection, *, label_key: str | None) -> Source:
    """Return what was made of a table's rows, one by one, with their labels, groups and values to split by.

    Args:
        label_key: what names the labels' column, for errors; None to do without labels.

    Raises:
        DataError: a column is missing, or values are missing or of another kind: how many, and the first of them.
    """
    _require_columns(table, _word_columns(data, label_key))
    return _source(inputs, for_each(table.rows, _words_reader(data, label_key)), table, data)


def value_in(row: Row, column: str, *, key: str, where: str) -> object:
    """Return a row's value in a column that is named by `key`, in whichever form of Unicode either is written.

    Raises:
        DataError: there is no such column.
    """
    if column in row:
        return row[column]
    for name, value in row.items():
        if _is_called(name, column):
            return value
    raise DataError(f"{where}: no column {visible(column)} ({key}); the columns are {enumeration(row)}")


def has_column(row: Row, column: str) -> bool:
    """Return whether a row has a column, in whichever form of Unicode either is written."""
    return column in row or any(_is_called(name, column) for name in row)


def _is_called(name: object, column: str) -> bool:
    return isinstance(name, str) and spelled(name) == spelled(column)


def label_in(value: object, labels: Collection[str], what: str) -> str:
    """Return a label as it is spelled: text, a whole number, true or false.

    Args:
        labels: the run's, where it names them; one of them counts, even if it is a word for a missing value.
        what: names the value, for errors.

    Raises:
        DataError: it is missing, or of another kind.
    """
    missing = () if isinstance(value, str) and spelled(value) in labels else _MISSING_LABELS
    return _word(value, what, missing=missing, remedy=f"{_REMEDY}, or name it in data.labels if it is a label")


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
    if (fault := what_is_no_text(value)) is not None:
        raise DataError(f"{what} has {fault}; remove it")
    return value


def shown(value: object) -> str:
    """Return a value as JSON has it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, TypeError, ValueError):  # nested too deeply, a key of another kind, a number too long
        return f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_AT_MOST else f"{text[:_SHOWN_AT_MOST]}..."


def _require_columns(table: Table, columns: Mapping[str, str]) -> None:
    """Refuse a table of which no row has one of the columns, by the key that names it."""
    for key in _lacking(table, columns):
        first = table.rows[0]
        value_in(first.row, columns[key], key=key, where=first.where)


def _lacking(table: Table, columns: Mapping[str, str]) -> list[str]:
    """Return the keys of columns that no row has; of a column that only some lack, each of those is refused."""
    return [key for key, column in columns.items() if not any(has_column(placed.row, column) for placed in table.rows)]


def _word_columns(data: DataSection, label_key: str | None) -> dict[str, str]:
    """Return the columns that hold words, by the keys that name them."""
    named = {"data.group": data.group, "data.split_by": data.split_by}
    if label_key is not None:
        named = {label_key: data.label, **named}
    return {key: column for key, column in named.items() if column is not None}


def _words_reader(data: DataSection, label_key: str | None) -> Callable[[PlacedRow], _WordsOfRow]:
    """Return what reads a row's label, group and value to split by, "" for what is not asked for."""
    columns = _word_columns(data, label_key)
    keys = (label_key, "data.group", "data.split_by")
    known: dict[str, dict[str, str]] = {key: {} for key in columns}  # few words, in many rows

    def word(placed: PlacedRow, key: str) -> str:
        column = columns[key]
        value = value_in(placed.row, column, key=key, where=placed.where)
        if isinstance(value, str) and value in known[key]:
            return known[key][value]
        what = f"{placed.where}: {column!r}"
        read = label_in(value, data.labels, what) if key == label_key else _word(value, what, missing=_MISSING)
        if isinstance(value, str):
            known[key][value] = read
        return read

    def words(placed: PlacedRow) -> _WordsOfRow:
        label, group, value = ("" if key is None or key not in columns else word(placed, key) for key in keys)
        return label, group, value

    return words


def _word(value: object, what: str, *, missing: Collection[str], remedy: str = _REMEDY) -> str:
    if isinstance(value, bool | int):
        value = _digits(value, what)
    if isinstance(value, float) and math.isnan(value):
        raise DataError(f"{what} is NaN, a missing value; {_REMEDY}")
    if value is not None and not isinstance(value, str):
        raise DataError(f"{what} is {shown(value)}; expected text or a whole number")
    word = spelled(checked_text(value, what))
    if word in missing or word.casefold() in missing:
        raise DataError(f"{what} is {word!r}, which stands for a missing value; {remedy}")
    return word


def _digits(value: int, what: str) -> str:
    try:
        return json.dumps(value)
    except ValueError as error:
        raise DataError(f"{what} is a whole number of too many digits; expected a label") from error


def _source(inputs: Inputs, words: list[_WordsOfRow], table: Table, data: DataSection) -> Source:
    labels, groups, values = (np.array([row[place] for row in words], dtype=np.object_) for place in range(3))
    return Source(inputs, labels, groups, None if data.split_by is None else values, table.fingerprint)
