"""Rows of a table with the place of each: .csv, .jsonl and .json, plain or compressed with gzip."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlora.common.errors import DataError
from fedlora.common.files import sha256_of
from fedlora.training.data.examples import Row


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
    """Return the rows of a table, UTF-8 with or without a byte order mark. Blank lines are skipped.

    A .csv has its columns' names in the first line, and text in all cells. A .jsonl has one object on each line; a
    .json is one list of objects.

    Raises:
        DataError: the file cannot be read, a line is malformed, or there are no rows.
    """
    content = _content(path)
    name = path.name.lower().removesuffix(".gz")
    read = _csv_rows if name.endswith(".csv") else _json_rows if name.endswith(".json") else _json_lines
    rows = list(read(path, content))
    if not rows:
        raise DataError(f"{path}: no examples in it")
    return Table(rows, sha256_of([path]))


def _content(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = raw[error.start]
        raise DataError(f"{path}, line {line}: byte 0x{found:02x} is not UTF-8; save the file as UTF-8") from error


def _csv_rows(path: Path, content: str) -> Iterator[PlacedRow]:
    """Yield the rows; the place is the line on which a row begins."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None and fields:
                header = fields
                _refuse_columns_of_one_name(path, header)
            elif header is not None and fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}, line {line}: {len(fields)} fields; expected {len(header)} as in the header "
                        "(put a text with commas in double quotes)"
                    )
                yield PlacedRow(f"{path}, line {line}", dict(zip(header, fields, strict=True)))
            line = reader.line_num + 1
    except csv.Error as error:
        reason = str(error)
        remedy = "look at the double quotes"
        if "field limit" in reason:
            remedy = "save longer texts as .jsonl"
        raise DataError(f"{path}, line {line}: malformed ({reason}); {remedy}") from error


def _refuse_columns_of_one_name(path: Path, header: list[str]) -> None:
    for column in header:
        if column and header.count(column) > 1:
            raise DataError(f"{path}: {header.count(column)} columns are named {column!r}; rename all but one")


def _json_lines(path: Path, content: str) -> Iterator[PlacedRow]:
    # Not splitlines, which would also cut at a line separator inside a text.
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
        yield PlacedRow(where, _object(row, where))


def _json_rows(path: Path, content: str) -> Iterator[PlacedRow]:
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}); "
            "a file with one object on each line is named .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(f"{path}: {type(rows).__name__}; expected a list of objects")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield PlacedRow(where, _object(row, where))


def _object(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{where}: {type(row).__name__}; expected an object such as {{...}}")
    return row
