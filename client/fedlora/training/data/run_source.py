"""What the run file names as data, read as the run's task needs it: pictures, texts, conversations or rows."""

import glob
import hashlib
from dataclasses import replace
from pathlib import Path

from fedlora.common.config import CausalLm, ImageClassification, OwnTask, RunConfig, SequenceClassification
from fedlora.common.errors import DataError
from fedlora.training.data.arrow_tables import (
    is_saved_dataset,
    read_named_dataset,
    read_parquet,
    read_saved_dataset,
)
from fedlora.training.data.columns import labelled_texts, with_columns
from fedlora.training.data.conversations import conversations_of
from fedlora.training.data.examples import Row
from fedlora.training.data.image_archive import read_image_archive
from fedlora.training.data.image_folder import read_image_folder
from fedlora.training.data.source import Source
from fedlora.training.data.tables import Table, read_text_table
from fedlora.training.resources import DATASETS_PREFIX, resolve_path

TABLE_SUFFIXES = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

_OWN_IMAGE_SIZE = 224


def read_source(name: str, config: RunConfig, *, deals_by_label: bool = False) -> Source:
    """Return what `name` holds, of the kind that the run's task needs.

    Args:
        name: a path, package:MODULE/FILE, or of tables also a pattern such as shards/*.jsonl, a folder of such files,
            or datasets:NAME/SPLIT.
        deals_by_label: whether to read the labels' column where the task itself needs none.

    Raises:
        DataError: it is missing, of another kind, or unreadable.
    """
    found = _located(name)
    match config.task:
        case ImageClassification(image_size=size):
            return _pictures(name, found, image_size=size)
        case OwnTask() if _is_pictures(found):
            given = config.task.settings.get("image_size", _OWN_IMAGE_SIZE)
            if not isinstance(given, int) or given < 1:
                raise DataError(f"task.settings.image_size is {given!r}; expected pixels, a whole number")
            return _pictures(name, found, image_size=given)
        case SequenceClassification():
            return labelled_texts(_table(name, found, config), config.data)
    table = _table(name, found, config)
    label_key = f'data.label, by which partition.by = "{config.partition.by}" deals out' if deals_by_label else None
    if isinstance(config.task, CausalLm):
        conversations, notes = conversations_of(table, config.data, reads_label=deals_by_label)
        source = with_columns(conversations, table, config.data, label_key=label_key)
        return replace(source, notes=tuple(f"{name}: {note}" for note in notes))
    rows: list[Row] = [placed.row for placed in table.rows]
    return with_columns(rows, table, config.data, label_key=label_key)


def vocabulary_of(source: Source, config: RunConfig) -> tuple[str, ...]:
    """Return the labels that the run tells apart, those of the run file or else of the data; () where it has none.

    Raises:
        DataError: fewer than two labels.
    """
    has_labels = isinstance(config.task, ImageClassification | SequenceClassification) or not isinstance(
        source.inputs, list
    )
    if not has_labels:
        return ()
    return config.data.labels or source.vocabulary(config.data.path)


def _located(name: str) -> Path | list[Path] | str:
    """Return the file or folder, the files that fit a pattern, or the name of a data set as it is."""
    if name.startswith(DATASETS_PREFIX):
        return name
    found = resolve_path(name, error=DataError)
    if isinstance(found, Path):
        return found
    if files := [Path(file) for file in sorted(glob.glob(str(Path(name).expanduser()), recursive=True))]:
        return files
    raise DataError(f"{name}: no such file or folder (looked in {Path.cwd()})")


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES)


def _tables_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_table(path))


def _is_pictures(found: Path | list[Path] | str) -> bool:
    if not isinstance(found, Path):
        return False
    if found.is_dir():
        return not is_saved_dataset(found) and not _tables_in(found)
    return found.name.lower().endswith(".npz")


def _pictures(name: str, found: Path | list[Path] | str, *, image_size: int) -> Source:
    if isinstance(found, Path) and found.is_dir():
        return read_image_folder(found, image_size=image_size)
    if isinstance(found, Path) and _is_pictures(found):
        return read_image_archive(found, image_size=image_size)
    is_table = not isinstance(found, Path) or _is_table(found)
    other = 'a table of texts; set task.kind = "sequence_classification", or name' if is_table else "expected"
    raise DataError(f"{name}: {other} an image folder or an .npz file")


def _table(name: str, found: Path | list[Path] | str, config: RunConfig) -> Table:
    """Return the rows of a data set, of a file, or of several files one after another."""
    if isinstance(found, str):
        return read_named_dataset(found)
    if isinstance(found, Path) and found.is_dir() and is_saved_dataset(found):
        return read_saved_dataset(found)
    if isinstance(found, Path):
        found = _tables_in(found) if found.is_dir() else [found]
    if not found or not all(map(_is_table, found)):
        is_pictures = _is_pictures(_located(name)) and not isinstance(config.task, OwnTask)
        other = 'holds pictures; set task.kind = "image_classification", or name' if is_pictures else "expected"
        raise DataError(f"{name}: {other} a file in {', '.join(TABLE_SUFFIXES)}")
    tables = [read_parquet(path) if path.name.lower().endswith(".parquet") else read_text_table(path) for path in found]
    if len(tables) == 1:
        return tables[0]
    fingerprints = " ".join(table.fingerprint for table in tables)
    return Table([row for table in tables for row in table.rows], hashlib.sha256(fingerprints.encode()).hexdigest())
