"""What the run file names as data, read as the run's task needs it: pictures, texts, conversations or rows."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora.common.config import CausalLm, ImageClassification, OwnTask, RunConfig, SequenceClassification
from fedlora.common.errors import DataError
from fedlora.training.data.arrow_tables import is_saved_dataset, read_named_dataset, read_parquet, read_saved_dataset
from fedlora.training.data.columns import labelled_texts, with_columns
from fedlora.training.data.conversations import conversations_of
from fedlora.training.data.examples import Note, Row
from fedlora.training.data.given_splits import GivenSplits, refuse_splits_inside
from fedlora.training.data.image_archive import read_image_archive
from fedlora.training.data.image_folder import read_image_folder
from fedlora.training.data.image_table import labelled_pictures
from fedlora.training.data.litter import METADATA
from fedlora.training.data.located import (
    TABLE_SUFFIXES,
    ArchivePart,
    Found,
    folders_in,
    is_archive,
    is_table,
    locate,
    metadata_in,
    splits_in,
    tables_in,
)
from fedlora.training.data.picture_reading import Wanted
from fedlora.training.data.source import Source, checked_groups, checked_vocabulary, enumeration
from fedlora.training.data.tables import Table, read_text_table

_OWN_IMAGE_SIZE = 224

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Parts:
    """A run's examples as they are given: all in `training`, or split already.

    Attributes:
        validation, test: None where the run has to split itself.
        notes: what was found in them or done to them.
    """

    training: Source
    validation: Source | None = None
    test: Source | None = None
    notes: tuple[Note, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hex sha256 over the content."""
        return joint_fingerprint([part for part in (self.training, self.validation, self.test) if part is not None])

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """Black and white of the pictures that are deeper than 8 bits; None without any."""
        parts = [part for part in (self.training, self.validation, self.test) if part is not None]
        return next((part.pixel_range for part in parts if part.pixel_range is not None), None)


def read_parts(config: RunConfig, *, wanted: Wanted, deals_by_label: bool = False) -> Parts:
    """Return what data.path holds, and the test set that data.test names, of the kind that the run's task needs.

    Args:
        config: data.path is a path, package:MODULE/FILE, or of tables also a pattern such as shards/*.jsonl, a folder
            of such files, or datasets:NAME/SPLIT.
        wanted: black and white of pictures that are deeper than 8 bits; those of the training part hold for all parts.
        deals_by_label: whether to read the labels' column where the task itself needs none.

    Raises:
        DataError: it is missing, of another kind, or unreadable.
    """
    name, test_name = config.data.path, config.data.test
    found = locate(name)
    splits = _splits(found, config)
    training = _read(
        name, found if splits is None else splits.training[0], config, wanted, deals_by_label=deals_by_label
    )
    wanted = training.pixel_range or wanted
    validation = test = None
    if splits is not None and splits.validation and config.data.validation > 0:
        validation = _read_held_out(name, splits.validation[0], config, wanted, "validation")
    if isinstance(test_name, str):
        test = _named_test(test_name, config, wanted)
    elif splits is not None and splits.test:
        test = _read_held_out(name, splits.test[0], config, wanted, "test")
    notes = [] if splits is None else [_note_on_splits(splits, config)]
    notes += [note for part in (training, validation, test) if part is not None for note in part.notes]
    return Parts(training, validation, test, tuple(notes))


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
    if config.data.labels:
        return checked_vocabulary(config.data.labels, origin="data.labels")
    return source.vocabulary(config.data.path)


def joint_fingerprint(sources: Sequence[Source]) -> str:
    """Return the hex sha256 over the content of several sources; of one, its own."""
    if len(sources) == 1:
        return sources[0].fingerprint
    return hashlib.sha256(" ".join(source.fingerprint for source in sources).encode()).hexdigest()


def _splits(found: Path | list[Path] | str, config: RunConfig) -> GivenSplits[Found] | None:
    if config.data.splits == "off":
        return None
    return splits_in(found, are_pictures=isinstance(config.task, ImageClassification) or _is_pictures(found))


def _named_test(name: str, config: RunConfig, wanted: Wanted) -> Source:
    """Return the test set that data.test names: all of it, or the test part of what is split already."""
    found = locate(name)
    splits = _splits(found, config)
    if splits is None:
        return _read(name, found, config, wanted)
    if not splits.test:
        raise DataError(f"{name}: is split already and has no part for the test (data.test); name one part of it")
    return _read(name, splits.test[0], config, wanted)


def _read_held_out(name: str, found: Found, config: RunConfig, wanted: Wanted, split: str) -> Source:
    try:
        return _read(name, found, config, wanted)
    except DataError as error:
        raise DataError(
            f"{error} (taken for the {split} by its name; to take others, name one part in data.path and one in "
            "data.test)"
        ) from error


def _note_on_splits(splits: GivenSplits[Found], config: RunConfig) -> Note:
    """Return which part is taken for what, and what becomes of the run's own shares."""
    data = config.data
    taken = ["train to train on"]
    if splits.test and isinstance(data.test, str):
        taken.append(f"test left out for data.test = {data.test!r}")
    elif splits.test:
        taken.append(f"test as the test set, whatever share data.test = {data.test:g} is")
    if splits.validation and data.validation == 0:
        taken.append("validation left out, for data.validation = 0")
    elif splits.validation:
        taken.append(f"validation as the clients' own, whatever share data.validation = {data.validation:g} is")
    if splits.left_out:
        taken.append(f"{enumeration(splits.left_out)} left out")
    text = f'{data.path}: is split already: {"; ".join(taken)} (data.splits = "off" takes all parts alike)'
    return Note(text, is_warning=True)


def _read(name: str, found: Found, config: RunConfig, wanted: Wanted, *, deals_by_label: bool = False) -> Source:
    """Return the examples of one part, or of the whole, their groups checked."""
    return checked_groups(_source(name, found, config, wanted, deals_by_label=deals_by_label), origin=name)


def _source(name: str, found: Found, config: RunConfig, wanted: Wanted, *, deals_by_label: bool) -> Source:
    name = str(found) if isinstance(found, Path) and found.is_dir() and Path(name) != found else name
    if isinstance(config.task, ImageClassification):
        return _pictures(name, found, config, image_size=config.task.image_size, wanted=wanted)
    if isinstance(config.task, OwnTask) and _is_pictures(found):
        given = config.task.settings.get("image_size", _OWN_IMAGE_SIZE)
        if not isinstance(given, int) or given < 1:
            raise DataError(f"task.settings.image_size is {given!r}; expected pixels, a whole number")
        return _pictures(name, found, config, image_size=given, wanted=wanted)
    table = _table(name, found, config)
    if isinstance(config.task, SequenceClassification):
        return labelled_texts(table, config.data)
    label_key = f'data.label, by which partition.by = "{config.partition.by}" deals out' if deals_by_label else None
    if isinstance(config.task, CausalLm):
        conversations, lines = conversations_of(table, config.data, reads_label=deals_by_label)
        source = with_columns(conversations, table, config.data, label_key=label_key)
        return replace(source, notes=tuple(Note(f"{name}: {line}", is_warning=True) for line in lines))
    rows: list[Row] = [placed.row for placed in table.rows]
    return with_columns(rows, table, config.data, label_key=label_key)


def _is_pictures(found: Found) -> bool:
    if isinstance(found, ArchivePart):
        return True
    if not isinstance(found, Path):
        return False
    if found.is_dir():
        return not is_saved_dataset(found) and not tables_in(found)
    return is_archive(found)


def _pictures(name: str, found: Found, config: RunConfig, *, image_size: int, wanted: Wanted) -> Source:
    is_folder = (
        isinstance(found, Path)
        and found.is_dir()
        and not is_saved_dataset(found)
        and bool(folders_in(found) or not tables_in(found))
    )
    if config.data.split_by is not None and (is_folder or _is_pictures(found)):
        raise DataError(
            f"{name}: an image folder or .npz file, without a column {config.data.split_by!r} (data.split_by); "
            "name a table with a column of pictures, or remove data.split_by"
        )
    if isinstance(found, ArchivePart):
        return read_image_archive(found.path, image_size=image_size, wanted=wanted, domains=found.domains)
    if isinstance(found, Path) and is_archive(found):
        return read_image_archive(found, image_size=image_size, wanted=wanted)
    if isinstance(found, Path) and is_folder:
        source = read_image_folder(found, image_size=image_size, wanted=wanted)
        if config.data.splits == "auto":
            refuse_splits_inside(source.labels.tolist(), origin=name)
        return source
    files = found if isinstance(found, list) else [found] if isinstance(found, Path) and not found.is_dir() else []
    if not all(map(is_table, files)):
        raise DataError(f"{name}: expected an image folder or an .npz file, or a table with a column of pictures")
    beside = Path() if isinstance(found, str) else files[0].parent if files else Path(name)
    table = _table(name, found, config)
    return labelled_pictures(table, config.data, origin=name, beside=beside, image_size=image_size, wanted=wanted)


def _table(name: str, found: Found, config: RunConfig) -> Table:
    """Return the rows of a data set, of a file, or of several files one after another."""
    if isinstance(found, str):
        return read_named_dataset(found)
    if isinstance(found, Path) and found.is_dir() and is_saved_dataset(found):
        return read_saved_dataset(found)
    files = _files(name, found)
    others = [path for path in files if not is_table(path)]
    if others or not files:
        is_pictures = _is_pictures(found) and not isinstance(config.task, OwnTask)
        other = 'holds pictures; set task.kind = "image_classification", or name' if is_pictures else "expected"
        which = f"{name} ({others[0].name})" if others and len(files) > 1 else name
        raise DataError(f"{which}: {other} a file in {', '.join(TABLE_SUFFIXES)}")
    tables = [read_parquet(path) if path.name.lower().endswith(".parquet") else read_text_table(path) for path in files]
    if len(tables) == 1:
        return tables[0]
    fingerprints = " ".join(table.fingerprint for table in tables)
    return Table([row for table in tables for row in table.rows], hashlib.sha256(fingerprints.encode()).hexdigest())


def _files(name: str, found: Found) -> list[Path]:
    """Return the files of what was found; warns of those left out that describe a data set and hold no rows."""
    if isinstance(found, Path):
        files, left_out = (tables_in(found), metadata_in(found)) if found.is_dir() else ([found], [])
    else:
        given = found if isinstance(found, list) else []
        left_out = [path.name for path in given if path.name in METADATA] if len(given) > 1 else []
        files = [path for path in given if path.name not in left_out]
    if left_out and files:
        logger.warning("%s: left out what describes a data set and holds no rows: %s", name, enumeration(left_out))
    return files
