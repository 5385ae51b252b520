"""Texts in a table: .csv and .jsonl, plain or compressed with gzip."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedlora.common.errors import DataError
from fedlora.common.files import sha256_of
from fedlora.training.data.source import Source, enumeration

SURROGATE = re.compile("[\ud800-\udfff]")

Row = Mapping[str, object]


@dataclass(frozen=True)
class Columns:
    """Which column is which; None where the run has none."""

    text: str
    label: str
    group: str | None
    split_by: str | None

    def named(self) -> dict[str, str]:
        """Return the column under the name that it has in the run file, without those that the run has not."""
        named = {"text": self.text, "label": self.label, "group": self.group, "split_by": self.split_by}
        return {f"data.{key}": column for key, column in named.items() if column is not None}


def read_table(path: Path, columns: Columns) -> Source:
    """Return the texts of a table, UTF-8 with or without a byte order mark. Blank lines are skipped.

    A .csv has its columns' names in the first line. A .jsonl has one object on each line, with text under the text's
    name and text, a whole number or true and false under the others. White space around all but the text is dropped.

    Raises:
        DataError: the file cannot be read, a line is malformed, or a value or a column is missing.
    """
    content = _content(path)
    is_csv = path.name.lower().removesuffix(".gz").endswith(".csv")
    rows = _csv_rows(path, content, columns) if is_csv else _json_rows(path, content)
    named = columns.named()
    cells: dict[str, list[str]] = {key: [] for key in named}
    for line, row in rows:
        for key, column in named.items():
            if column not in row:
                raise DataError(f"{path}, line {line}: {_missing(key, column, list(row))}")
            cells[key].append(_cell(row[column], column, is_text=key == "data.text", where=f"{path}, line {line}"))
    texts = cells["data.text"]
    if not texts:
        raise DataError(f"{path}: no examples in it")
    return Source(
        inputs=texts,
        labels=np.array(cells["data.label"], dtype=np.str_),
        groups=np.array(cells.get("data.group", [""] * len(texts)), dtype=np.str_),
        split_by=np.array(cells["data.split_by"], dtype=np.str_) if columns.split_by is not None else None,
        fingerprint=sha256_of([path]),
    )


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


def _csv_rows(path: Path, content: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Yield the number of the line on which a row begins, and the row."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for fields in reader:
            if header is None and fields:
                header = fields
                _check_header(path, header, columns)
            elif header is not None and fields:
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}, line {line}: {len(fields)} fields; expected {len(header)} as in the header "
                        "(put a text with commas in double quotes)"
                    )
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: malformed ({error}); look at the double quotes") from error


def _check_header(path: Path, header: list[str], columns: Columns) -> None:
    for key, column in columns.named().items():
        if column not in header:
            raise DataError(f"{path}: {_missing(key, column, header)}")
        if header.count(column) > 1:
            raise DataError(f"{path}: {header.count(column)} columns are named {column!r}; rename all but one")


def _missing(key: str, column: str, existing: list[str]) -> str:
    return f"no column {column!r} ({key}); the columns are {enumeration(existing)}"


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, Row]]:
    """Yield the number of the line, and its object."""
    # Not splitlines, which would also cut at a line separator inside a text.
    for line, text in enumerate(content.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {line}: not JSON ({error.msg}, column {error.colno})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {line}: {type(row).__name__}; expected an object such as {{...}}")
        yield line, row


def _cell(value: object, column: str, *, is_text: bool, where: str) -> str:
    if isinstance(value, bool | int) and not is_text:
        value = json.dumps(value)
    if value is not None and not isinstance(value, str):
        expected = "text" if is_text else "text or a whole number"
        raise DataError(f"{where}: {column!r} is {json.dumps(value, ensure_ascii=False)}; expected {expected}")
    if value is None or not value.strip():
        raise DataError(f"{where}: {column!r} is empty; fill it in or remove the line")
    if SURROGATE.search(value):
        raise DataError(f"{where}: {column!r} has half a surrogate pair, which is no character; remove it")
    return value if is_text else value.strip()
