"""Rows of a table with the place of each: .csv, .tsv, .jsonl and .json, plain or compressed with gzip."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedlora.common.errors import DataError
from fedlora.common.files import sha256_of
from fedlora.common.spelling import spelled
from fedlora.training.data.bad_rows import all_good
from fedlora.training.data.examples import Row
from fedlora.training.data.json_values import json_value
from fedlora.training.data.text_files import text_of

_COMMA, _SEMICOLON, _TAB = ",", ";", "\t"
_NAMES = {_COMMA: "commas", _SEMICOLON: "semicolons", _TAB: "tabs"}
# Excel's first line, with which it says what separates the fields.
_SEPARATOR_LINE = re.compile(r'"?sep=([^\r\n"])"?(\r\n|\n|\r)')
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
_LOOKED_AT = 20


@dataclass(frozen=True)
class PlacedRow:
    """A row, and where it stands, such as "notes.csv, line 7", for errors."""

    where: str
    row: Row


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of one origin, one at least.

    Attributes:
        fingerprint: hex sha256 over the content.
    """

    rows: list[PlacedRow]
    fingerprint: str


def read_text_table(path: Path) -> Table:
    """Return the rows of a table, UTF-8, or UTF-16 with a byte order mark. Blank lines are skipped.

    A .csv or .tsv has its columns' names in the first line, and text in all cells; its fields are separated by
    commas, semicolons or tabs. A .jsonl has one object on each line; a .json is one list of objects.

    Raises:
        DataError: the file cannot be read, lines are malformed, or there are no rows.
    """
    content = text_of(path)
    if not content or content.isspace():
        raise DataError(f"{path}: empty, no examples in it; fill it or remove it")
    name = path.name.lower().removesuffix(".gz")
    read = _json_rows if name.endswith(".json") else _json_lines if name.endswith(".jsonl") else _delimited_rows
    rows = all_good(read(path, content))
    if not rows:
        raise DataError(f"{path}: no examples in it")
    return Table(rows, sha256_of([path]))


def _delimited_rows(path: Path, content: str) -> Iterator[PlacedRow | DataError]:
    """Yield the rows; the place is the line on which a row begins."""
    line, begin = 1, 0
    if said := _SEPARATOR_LINE.match(content):
        line, begin, delimiter = 2, said.end(), said[1]
    else:
        delimiter = _delimiter(content, is_tsv=path.name.lower().removesuffix(".gz").endswith(".tsv"))
    reader = csv.reader(_lines(content, begin), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    num_before = line - 1
    try:
        for fields in reader:
            if header is None and fields:
                header = fields
                _refuse_columns_of_one_name(path, header)
            elif header is not None and fields:
                where = f"{path}, line {line}"
                if len(fields) == len(header):
                    yield PlacedRow(where, dict(zip(header, fields, strict=True)))
                else:
                    separators = _NAMES.get(delimiter, repr(delimiter))
                    yield DataError(
                        f"{where}: {len(fields)} fields; expected {len(header)} as in the header "
                        f"(put a text with {separators} in double quotes)"
                    )
            line = num_before + reader.line_num + 1
    except csv.Error as error:
        reason = str(error)
        remedy = "look at the double quotes"
        if "field limit" in reason:
            remedy = "save longer texts as .jsonl"
        yield DataError(f"{path}, line {line}: malformed ({reason}); {remedy}")


def _delimiter(content: str, *, is_tsv: bool) -> str:
    """Return what separates the fields: of what divides the header, the first that all lines agree on."""
    candidates = (_TAB, _COMMA, _SEMICOLON) if is_tsv else (_COMMA, _SEMICOLON, _TAB)
    widths = {delimiter: _widths(content, delimiter) for delimiter in candidates}
    dividing = [delimiter for delimiter in candidates if widths[delimiter] and widths[delimiter][0] > 1]
    even = (delimiter for delimiter in dividing if len(set(widths[delimiter])) == 1)
    return next(even, dividing[0] if dividing else candidates[0])


def _widths(content: str, delimiter: str) -> list[int]:
    """Return the numbers of fields of the first lines, up to one that is malformed."""
    found: list[int] = []
    reader = csv.reader(_lines(content), strict=True, delimiter=delimiter)
    try:
        found += (len(fields) for fields in islice(filter(None, reader), _LOOKED_AT))
    except csv.Error:
        return found
    return found


def _lines(content: str, begin: int = 0) -> Iterator[str]:
    """Yield the lines with their ends, as the csv module expects them."""
    return (line[0] for line in _LINE.finditer(content, begin))


def _refuse_columns_of_one_name(path: Path, header: list[str]) -> None:
    names = [spelled(column) for column in header]
    for column in filter(None, names):
        if names.count(column) > 1:
            raise DataError(f"{path}: {names.count(column)} columns are named {column!r}; rename all but one")


def _json_lines(path: Path, content: str) -> Iterator[PlacedRow | DataError]:
    # Not splitlines, which would also cut at a line separator inside a text.
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        try:
            yield _placed(json_value(text), where)
        except json.JSONDecodeError as error:
            yield DataError(f"{where}: not JSON ({error.msg}, column {error.colno})")


def _json_rows(path: Path, content: str) -> Iterator[PlacedRow | DataError]:
    try:
        rows = json_value(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            "a file with one object on each line is named .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            f"{path}: {type(rows).__name__}; expected a list of objects; if it holds no examples, name the files that "
            "do, such as data.path = FOLDER/*.jsonl"
        )
    for number, row in enumerate(rows, start=1):
        yield _placed(row, f"{path}, row {number}")


def _placed(row: object, where: str) -> PlacedRow | DataError:
    if not isinstance(row, dict):
        return DataError(f"{where}: {type(row).__name__}; expected an object such as {{...}}")
    return PlacedRow(where, row)
