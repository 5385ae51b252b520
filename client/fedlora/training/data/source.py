"""A source as it was read: examples whose labels are still words, before anything is split or dealt out."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedlora.common.errors import DataError
from fedlora.training.data.examples import Examples, Inputs, inputs_at, sorted_vocabulary

NAMED_AT_MOST = 8


@dataclass(frozen=True, eq=False)
class Source:
    """n examples of one origin.

    Attributes:
        inputs: pictures (n, height, width, channels) uint8; or n texts, conversations, or rows.
        labels: (n,), each example's label as a word; "" where it has none.
        groups: (n,), each example's natural group, "" where there is none.
        split_by: (n,), the values that must not be on both sides of a split; None without such a column.
        fingerprint: hex sha256 over the content.
        notes: what of the content was not used, in a line each.
    """

    inputs: Inputs
    labels: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    split_by: npt.NDArray[np.str_] | None
    fingerprint: str
    notes: tuple[str, ...] = ()

    def vocabulary(self, origin: Path | str) -> tuple[str, ...]:
        """Return the sorted labels.

        Raises:
            DataError: fewer than two labels.
        """
        return checked_vocabulary(sorted_vocabulary(np.unique(self.labels).tolist()), origin=origin)

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
        inputs = inputs_at(self.inputs, rows)
        return Source(inputs, self.labels[rows], self.groups[rows], split_by, fingerprint, self.notes)


def checked_vocabulary(labels: tuple[str, ...], *, origin: Path | str) -> tuple[str, ...]:
    """Return `labels`, which must be two at least to tell apart."""
    if len(labels) < 2:
        found = f"only the label {labels[0]!r}" if labels else "no label"
        raise DataError(f"{origin}: {found}; a classification needs at least two labels")
    return labels


def label_indices(labels: list[str], vocabulary: tuple[str, ...], *, origin: Path | str) -> npt.NDArray[np.int64]:
    """Return the position in `vocabulary` of each label, (n,).

    Raises:
        DataError: labels that are not in `vocabulary`.
    """
    index_of = {label: index for index, label in enumerate(vocabulary)}
    if unknown := sorted({label for label in labels if label not in index_of}):
        raise DataError(
            f"{origin}: labels that are not in the run's vocabulary: {enumeration(unknown)}; it has "
            f"{enumeration(vocabulary)}; remove those examples, or add such labels to the training examples"
        )
    return np.array([index_of[label] for label in labels], dtype=np.int64)


def enumeration(names: Iterable[str]) -> str:
    """Return names in words, quoted, and how many more there are beyond the first few."""
    quoted = [repr(name) for name in names]
    shown = ", ".join(quoted[:NAMED_AT_MOST])
    return shown if len(quoted) <= NAMED_AT_MOST else f"{shown} and {len(quoted) - NAMED_AT_MOST} more"
