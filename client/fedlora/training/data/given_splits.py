"""Data that come split already: folders, files, keys and data sets named train, validation and test."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from fedlora.common.config import Splits
from fedlora.common.errors import DataError
from fedlora.training.data.source import enumeration

Split = Literal["training", "validation", "test"]
Named = TypeVar("Named")

_SPLITS: Mapping[str, Split] = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SUFFIX = re.compile(r"[-_ ]?(set|split|data|images|imgs|pictures|[0-9]+)$")


@dataclass(frozen=True)
class GivenSplits(Generic[Named]):
    """What was found under the names of splits.

    Attributes:
        training, validation, test: what each holds; nothing of a split that there is not.
        left_out: names that are no split's.
    """

    training: Sequence[Named]
    validation: Sequence[Named] = ()
    test: Sequence[Named] = ()
    left_out: tuple[str, ...] = ()


def split_of_name(name: str) -> Split | None:
    """Return the split that a folder, a key or a data set is named as, such as Train or test_images; else None."""
    return _SPLITS.get(_SUFFIX.sub("", name.lower()))


def split_of_file(name: str) -> Split | None:
    """Return the split that one word of a file's name names, as in train-00000-of-00002.parquet; else None."""
    stem = re.sub(r"(\.[a-z]+){1,2}$", "", name.lower())
    found = {split for word in re.split(r"[^a-z]+", stem) if (split := _SPLITS.get(word)) is not None}
    return found.pop() if len(found) == 1 else None


def given_splits(
    entries: Mapping[str, Named],
    split_of: Callable[[str], Split | None],
    *,
    origin: str,
    otherwise: str,
    path_of: Callable[[str], str] | None = None,
    leaves_out: bool = False,
) -> GivenSplits[Named] | None:
    """Return entries by the split that their names name; None where they are no splits.

    A name of training alone beside others may well be one of them, such as a class of vehicles; those of a test or a
    validation are not passed by.

    Args:
        origin: names what holds the entries, for errors.
        otherwise: what the entries are if they are no splits, such as "domains".
        path_of: the path of an entry, as a run file names it; None where a part cannot be named alone.
        leaves_out: whether names beside those of splits are left out; else they are refused.

    Raises:
        DataError: splits without one for training, or other names beside them.
    """
    named: dict[Split, list[str]] = {"training": [], "validation": [], "test": []}
    others: list[str] = []
    for name in entries:
        split = split_of(name)
        (others if split is None else named[split]).append(name)
    held_out = named["validation"] + named["test"]
    if not held_out and (others or not named["training"]):
        return None
    # Of a file's path the end tells.
    known = enumeration(Path(name).name for name in (*named["training"], *held_out))
    off = f'data.splits = "off" to take all of them as {otherwise}'
    if others and not leaves_out:
        beside = enumeration(Path(name).name for name in others)
        raise DataError(
            f"{origin}: named as splits are {known}, and not so what is beside them: {beside}; "
            f"{_lines(named, path_of)}, or {off}"
        )
    if not named["training"]:
        raise DataError(f"{origin}: {known} and none for training; {_lines(named, path_of)}, or {off}")
    return GivenSplits(
        training=[entries[name] for name in named["training"]],
        validation=[entries[name] for name in named["validation"]],
        test=[entries[name] for name in named["test"]],
        left_out=tuple(others),
    )


def _lines(named: Mapping[Split, list[str]], path_of: Callable[[str], str] | None) -> str:
    """Return what to write, under [data], in place of what cannot be told."""
    if path_of is None:
        return "name all keys so: train_images, test_images"
    tests = named["test"] or named["validation"]
    if named["training"]:
        test = f' and data.test = "{path_of(tests[0])}"' if tests else ""
        return f'write data.path = "{path_of(named["training"][0])}"{test}'
    return f"move {path_of(tests[0])} elsewhere and name it in data.test, the rest in data.path"


def refuse_splits_inside(labels: Iterable[str], *, origin: str) -> None:
    """Raise DataError if pictures lie in class/train/ and class/test/, so that their labels would be splits."""
    distinct = set(labels)
    if (
        len(distinct) > 1
        and {split_of_name(label) for label in distinct} >= {"training"}
        and all(map(split_of_name, distinct))
    ):
        raise DataError(
            f"{origin}: the folders that hold pictures are {enumeration(sorted(distinct))}, which are splits and no "
            'classes; expected train/class/picture.png and test/class/picture.png; data.splits = "off" takes them as '
            "classes"
        )


def refuse_clients_named_as_splits(clients: Iterable[str], splits: Splits) -> None:
    """Raise DataError for clients that are the splits of one data set."""
    found = {name: split_of_name(name) for name in clients}
    if splits == "auto" and len(found) > 1 and all(found.values()) and "training" in found.values():
        raise DataError(
            f"the clients are {enumeration(found)}, which are splits of one data set; give what each client holds "
            'under its name, and the test set as test=...; data.splits = "off" takes them as clients'
        )
