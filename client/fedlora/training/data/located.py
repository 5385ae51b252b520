"""Where a run's data lie: a file or a folder, several files, keys of an archive, or the name of a data set."""

import glob
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fedlora.common.errors import DataError
from fedlora.common.resources import DATASETS_PREFIX, resolve_path
from fedlora.training.data.arrow_tables import is_saved_dataset, splits_of_saved_dataset
from fedlora.training.data.given_splits import GivenSplits, Split, given_splits, split_of_file, split_of_name
from fedlora.training.data.image_archive import domains_of
from fedlora.training.data.image_folder import SUFFIXES
from fedlora.training.data.litter import METADATA, is_litter, without_litter

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

_HUB_FOLDER = "data"  # in which data sets of the hub keep their files


@dataclass(frozen=True)
class ArchivePart:
    """Some domains of an .npz file, each with the group that it is."""

    path: Path
    domains: Mapping[str, str]


Named = TypeVar("Named")
Found = Path | list[Path] | ArchivePart | str


def locate(name: str) -> Path | list[Path] | str:
    """Return the file or folder, the files that fit a pattern, or the name of a data set as it is.

    Raises:
        DataError: there is nothing of this name.
    """
    if name.startswith(DATASETS_PREFIX):
        return name
    found = resolve_path(name, error=DataError)
    if isinstance(found, Path):
        return found
    if files := _fitting(Path(name).expanduser()):
        return files
    raise DataError(f"{name}: no such file or folder (looked in {Path.cwd()})")


def _fitting(pattern: Path) -> list[Path]:
    """Return the files and folders that fit a pattern, without litter where they fit its wildcards."""
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    found = sorted(Path(file) for file in glob.glob(str(pattern), recursive=True))
    return without_litter(found, below=fixed)


def splits_in(found: Path | list[Path] | str, *, are_pictures: bool) -> GivenSplits[Found] | None:
    """Return the parts of what was found, if it is split already; None if it is one whole.

    Args:
        are_pictures: whether folders hold pictures, where there are such beside tables.

    Raises:
        DataError: only some of it is named as a split, or two parts are named as one.
    """
    if isinstance(found, str):
        return None
    if isinstance(found, list):
        return _of_files(found, origin=f"{found[0].parent}")
    if is_archive(found):
        return _of_archive(found)
    if not found.is_dir():
        return None
    if (saved := splits_of_saved_dataset(found)) is not None:
        if not any(split_of_name(name) == "training" for name in saved):
            return None
        folders: dict[str, Found] = {name: found / name for name in saved}
        return _one_each(folders, origin=f"{found}", otherwise="data sets", leaves_out=True)
    if is_saved_dataset(found):
        return None
    inner, tables = folders_in(found), tables_in(found)
    if tables and not (are_pictures and inner):
        return _of_files(tables, origin=f"{found}")
    if [folder.name for folder in inner] == [_HUB_FOLDER]:
        return splits_in(inner[0], are_pictures=are_pictures)
    # A picture beside the splits' folders would be in none of them.
    loose = [path for path in sorted(_entries(found)) if path.is_file() and not is_litter(path)]
    pictures = [path for path in loose if are_pictures and path.suffix.lower() in SUFFIXES]
    splits = _one_each(
        {path.name: path for path in (*inner, *pictures)},
        origin=f"{found}",
        otherwise="domains or classes" if are_pictures else "folders",
    )
    return None if splits is None else replace(splits, left_out=tuple(path.name for path in loose))


def is_archive(path: Path) -> bool:
    """Return whether this is the name of a file of numpy's arrays."""
    return path.is_file() and path.name.lower().endswith(".npz")


def is_table(path: Path) -> bool:
    """Return whether this is a file whose name is a table's."""
    return path.is_file() and path.name.lower().endswith(TABLE_SUFFIXES)


def tables_in(folder: Path) -> list[Path]:
    """Return the tables right in a folder, by name, without litter and files that describe a data set."""
    found = (path for path in _entries(folder) if is_table(path) and not is_litter(path))
    return sorted(path for path in found if path.name not in METADATA)


def metadata_in(folder: Path) -> list[str]:
    """Return the names of the files right in a folder that describe a data set and hold no rows."""
    return sorted(path.name for path in _entries(folder) if path.name in METADATA)


def folders_in(folder: Path) -> list[Path]:
    """Return the folders right in a folder, by name, without litter."""
    return sorted(path for path in _entries(folder) if path.is_dir() and not is_litter(path))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _of_files(files: list[Path], *, origin: str) -> GivenSplits[Found] | None:
    """Return files by what their names say, or else the names of the folders that they are in."""
    if len(files) == 1:
        return None

    def split_of(name: str) -> Split | None:
        return split_of_file(Path(name).name) or split_of_name(Path(name).parent.name)

    named = given_splits(
        {str(file): file for file in files}, split_of, origin=origin, otherwise="one set of rows", path_of=str
    )
    # Files that are all for training are no other than one set.
    return _gathered(named, list) if named is not None and (named.validation or named.test) else None


def _of_archive(path: Path) -> GivenSplits[Found] | None:
    """Return the keys train_images, test_images ..., or train_DOMAIN_images and so on, as parts of an archive."""

    def split_of(domain: str) -> Split | None:
        return split_of_name(domain.partition("_")[0])

    def part_of(domains: Sequence[str]) -> ArchivePart:
        return ArchivePart(path, {domain: domain.partition("_")[2] for domain in domains})

    domains = domains_of(path)
    named = given_splits({domain: domain for domain in domains}, split_of, origin=f"{path}", otherwise="domains")
    return None if named is None else _gathered(named, part_of)


def _gathered(named: GivenSplits[Named], gather: Callable[[Sequence[Named]], Found]) -> GivenSplits[Found]:
    """Return the splits with all that one holds made into one."""
    training, validation, test = (
        [gather(part)] if part else [] for part in (named.training, named.validation, named.test)
    )
    return GivenSplits(training, validation, test)


def _one_each(
    entries: Mapping[str, Found], *, origin: str, otherwise: str, leaves_out: bool = False
) -> GivenSplits[Found] | None:
    """Return the entries by their names, one at most for each split."""
    found = given_splits(
        entries,
        split_of_name,
        origin=origin,
        otherwise=otherwise,
        path_of=lambda name: f"{origin}/{name}",
        leaves_out=leaves_out,
    )
    for split in ("training", "validation", "test") if found is not None else ():
        if len(part := getattr(found, split)) > 1:
            names = " and ".join(repr(Path(str(one)).name) for one in part)
            raise DataError(
                f"{origin}: {names} are both named as the {split} part; put their content into one, or set "
                f'data.splits = "off" to take all of them as {otherwise}'
            )
    return found
