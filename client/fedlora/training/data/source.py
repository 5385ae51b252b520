"""A source as it was read: examples whose labels are still words, before anything is split or dealt out."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedlora.common.errors import DataError
from fedlora.common.spelling import checked_names, nearest_twin, twins_in_words, visible, what_is_no_text
from fedlora.training.data.examples import Examples, Inputs, Note, Words, inputs_at, sorted_vocabulary, words_of

logger = logging.getLogger(__name__)

NAMED_AT_MOST = 8


@dataclass(frozen=True, eq=False)
class Source:
    """n examples of one origin.

    Attributes:
        inputs: pictures (n, height, width, channels) uint8; or n texts, conversations, or rows.
        labels: (n,), each example's label as a word; "" where it has none. Words are held as they are spelled.
        groups: (n,), each example's natural group, "" where there is none.
        split_by: (n,), the values that must not be on both sides of a split; None without such a column.
        fingerprint: hex sha256 over the content.
        notes: what was found in the content or done to it.
        pixel_range: black and white of the pictures that are deeper than 8 bits; None without any.
    """

    inputs: Inputs
    labels: Words
    groups: Words
    split_by: Words | None
    fingerprint: str
    notes: tuple[Note, ...] = ()
    pixel_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "groups", "split_by"):
            if (words := getattr(self, name)) is not None:
                object.__setattr__(self, name, words_of(words.tolist()))

    def vocabulary(self, origin: Path | str) -> tuple[str, ...]:
        """Return the sorted labels.

        Raises:
            DataError: fewer than two labels.
        """
        return checked_vocabulary(sorted_vocabulary(self.labels.tolist()), origin=origin)

    def examples(self, vocabulary: tuple[str, ...], *, origin: Path | str) -> Examples:
        """Return the examples, their labels as indices into `vocabulary`.

        Without a vocabulary all indices are 0.

        Raises:
            DataError: a label that is not in `vocabulary`.
        """
        if not vocabulary:
            return Examples(self.inputs, np.zeros(len(self.groups), dtype=np.int64), self.groups)
        return Examples(self.inputs, label_indices(self.labels.tolist(), vocabulary, origin=origin), self.groups)

    def take(self, rows: npt.NDArray[np.int64], *, fingerprint: str) -> "Source":
        """Return the examples at `rows`, as a source with a fingerprint of its own."""
        split_by = None if self.split_by is None else self.split_by[rows]
        return replace(
            self,
            inputs=inputs_at(self.inputs, rows),
            labels=self.labels[rows],
            groups=self.groups[rows],
            split_by=split_by,
            fingerprint=fingerprint,
        )


def checked_vocabulary(labels: tuple[str, ...], *, origin: Path | str) -> tuple[str, ...]:
    """Return `labels` as they are spelled, which must be two at least to tell apart; warns of those that look alike.

    Raises:
        DataError: fewer than two, an empty one, or two that read the same.
    """
    try:
        words = checked_names(labels)
    except ValueError as error:
        raise DataError(f"{origin} {error}") from error
    if len(words) < 2:
        found = f"only the label {visible(words[0])}" if words else "no label"
        raise DataError(f"{origin}: {found}; a classification needs at least two labels")
    warn_of_twins(words, origin=origin, what="labels", remedy="write each label in one way if they are the same")
    return words


def warn_of_twins(words: Iterable[str], *, origin: Path | str, what: str, remedy: str) -> None:
    """Warn of words that look alike or read the same, which are kept apart."""
    if twins := twins_in_words(words):
        logger.warning("%s: %s that look alike are kept apart (%s); %s", origin, what, twins, remedy)


def checked_groups(source: Source, *, origin: Path | str) -> Source:
    """Return the source, whose groups must be text; warns of those that look alike."""
    names = sorted(set(source.groups.tolist()))
    for name in names:
        if (fault := what_is_no_text(name)) is not None:
            raise DataError(f"{origin}: the group {visible(name)} has {fault}; rename it")
    warn_of_twins(names, origin=origin, what="groups", remedy="write each group in one way if they are the same")
    return source


def label_indices(labels: list[str], vocabulary: tuple[str, ...], *, origin: Path | str) -> npt.NDArray[np.int64]:
    """Return the position in `vocabulary` of each label, (n,).

    Raises:
        DataError: labels that are not in `vocabulary`.
    """
    index_of = {label: index for index, label in enumerate(vocabulary)}
    if unknown := sorted({label for label in labels if label not in index_of}):
        twins = ((label, nearest_twin(label, vocabulary)) for label in unknown[:NAMED_AT_MOST])
        if (alike := next(((label, twin) for label, twin in twins if twin is not None), None)) is not None:
            remedy = f"{visible(alike[0])} looks like {visible(alike[1])} and is another label; write both in one way"
        else:
            remedy = "remove those examples, or add such labels to the training examples"
        raise DataError(
            f"{origin}: labels that are not in the run's vocabulary: {enumeration(unknown)}; it has "
            f"{enumeration(vocabulary)}; {remedy}"
        )
    return np.array([index_of[label] for label in labels], dtype=np.int64)


def enumeration(names: Iterable[str]) -> str:
    """Return names in words, quoted, and how many more there are beyond the first few."""
    quoted = [visible(str(name)) for name in names]
    shown = ", ".join(quoted[:NAMED_AT_MOST])
    return shown if len(quoted) <= NAMED_AT_MOST else f"{shown} and {len(quoted) - NAMED_AT_MOST} more"
