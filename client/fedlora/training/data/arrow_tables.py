"""Rows of .parquet files, and of data sets of the library `datasets`: a folder that it saved, or one by name."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedlora.common.errors import DataError, one_line
from fedlora.common.files import sha256_of
from fedlora.common.resources import DATASETS_PREFIX
from fedlora.training.data.examples import Row
from fedlora.training.data.source import enumeration
from fedlora.training.data.tables import PlacedRow, Table

_ONE, _SEVERAL = "dataset_info.json", "dataset_dict.json"  # the files by which save_to_disk's folders are known


class _NotFoundError(DataError):
    """There is no data set of this name."""


def read_parquet(path: Path) -> Table:
    """Return the rows of a .parquet file.

    Raises:
        DataError: the file cannot be read, there are no rows, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: a .parquet file needs pyarrow; pip install 'fedlora[parquet]'") from error
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: empty, no examples in it; fill it or remove it")
        with pq.ParquetFile(path) as file:
            rows = _placed(str(path), file.iter_batches())
    # ValueError and OverflowError: a time that Python has no value for.
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)})") from error
    return Table(rows, sha256_of([path]))


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote this folder; these files alone also lie beside tables of other kinds."""
    if (folder / _ONE).is_file():
        return any(folder.glob("*.arrow"))
    return (folder / _SEVERAL).is_file() and any(folder.glob(f"*/{_ONE}"))


def splits_of_saved_dataset(folder: Path) -> list[str] | None:
    """Return the names of the splits that `DatasetDict.save_to_disk` wrote here; None of any other folder."""
    if not (folder / _SEVERAL).is_file():
        return None
    return sorted(path.parent.name for path in folder.glob(f"*/{_ONE}"))


def read_saved_dataset(folder: Path) -> Table:
    """Return the rows of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        DataError: it cannot be read, has no rows or several splits, or `datasets` is not installed.
    """
    library = _library(str(folder))
    if (splits := splits_of_saved_dataset(folder)) is not None:
        raise DataError(f"{folder}: a folder of the splits {enumeration(splits)}; name one of them, {folder}/SPLIT")
    return _read(library, str(folder), lambda: library.load_from_disk(str(folder)))


def read_named_dataset(name: str) -> Table:
    """Return the rows that `datasets.load_dataset` gives: `datasets:NAME/SPLIT` or `datasets:NAME/CONFIG/SPLIT`.

    A NAME is that of a folder here or of a data set of the hub, with or without its owner: OWNER/NAME.

    Raises:
        DataError: there is none, it cannot be read or has no rows, or `datasets` is not installed.
    """
    parts = name.removeprefix(DATASETS_PREFIX).split("/")
    if not 2 <= len(parts) <= 4 or not all(parts):
        raise DataError(f"{name}: expected datasets:NAME/SPLIT or datasets:NAME/CONFIG/SPLIT, NAME with its owner")
    library = _library(name)
    *path, split = parts
    if len(path) == 1:
        return _load(library, name, path[0], None, split)
    owned, configuration = "/".join(path[:2]), path[2] if len(path) == 3 else None
    is_owned = Path(owned).is_dir() or not Path(path[0]).is_dir()
    try:
        if is_owned or configuration is not None:
            return _load(library, name, owned, configuration, split)
    except _NotFoundError:
        if configuration is not None:
            raise
    # What looked like an owner is the name, and the name its configuration.
    return _load(library, name, path[0], path[1], split)


def _library(origin: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{origin}: a data set of the library datasets needs it; pip install 'fedlora[datasets]'"
        ) from error
    return datasets


def _load(library: Any, origin: str, path: str, configuration: str | None, split: str) -> Table:
    # Where the hub cannot be reached, each of its attempts would tell the terminal so.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return _read(library, origin, lambda: library.load_dataset(path, configuration, split=split))


def _read(library: Any, origin: str, load: Callable[[], Any]) -> Table:
    """Return the rows of what `load` gives, and a fingerprint over their content, wherever they lie."""
    library.disable_progress_bars()
    try:
        data_set = load()
        names = {
            column: feature.names
            for column, feature in data_set.features.items()
            if isinstance(feature, library.ClassLabel)
        }
        # As Arrow tables, a picture stays the bytes that it is.
        batches = data_set.with_format("arrow").iter(batch_size=1000)
        rows = _placed(origin, batches, names)
    except library.exceptions.DatasetNotFoundError as error:
        raise _NotFoundError(f"{origin}: {one_line(error)}") from error
    except (OSError, ValueError, OverflowError, LookupError, library.exceptions.DatasetsError) as error:
        raise DataError(f"{origin}: cannot be read ({one_line(error)})") from error
    digest = hashlib.sha256()
    for placed in rows:
        digest.update(repr(placed.row).encode("utf-8", "surrogatepass"))
    return Table(rows, digest.hexdigest())


def _placed(origin: str, batches: Iterable[Any], label_names: Mapping[str, list[str]] | None = None) -> list[PlacedRow]:
    """Return the rows of Arrow batches with their numbers, whole numbers that stand for a label's name as that name."""
    names = label_names or {}
    rows = [
        PlacedRow(f"{origin}, row {number}", _with_names(row, names))
        for number, row in enumerate(_rows(batches), start=1)
    ]
    if not rows:
        raise DataError(f"{origin}: no examples in it")
    return rows


def _rows(batches: Iterable[Any]) -> Iterator[dict[str, object]]:
    for batch in batches:
        yield from batch.to_pylist()


def _with_names(row: dict[str, object], names: Mapping[str, list[str]]) -> Row:
    for column, of_label in names.items():
        label = row[column]
        # -1 is the label that a test set keeps to itself.
        row[column] = of_label[label] if isinstance(label, int) and label >= 0 else None
    return row
