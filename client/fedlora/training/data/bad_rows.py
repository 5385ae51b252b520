"""Rows that cannot be used: all are counted, and the first ones named, before anything is refused."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from fedlora.common.errors import DataError

SHOWN_AT_MOST = 10

R = TypeVar("R")
T = TypeVar("T")


def for_each(rows: Iterable[R], read: Callable[[R], T]) -> list[T]:
    """Return what `read` makes of each row.

    Raises:
        DataError: `read` refuses rows; how many, and of the first ten where they stand and what is wrong.
    """
    return all_good(_tried(read, row) for row in rows)


def all_good(rows: Iterable[T | DataError]) -> list[T]:
    """Return the rows, none of which may be an error.

    Raises:
        DataError: some are; their number, and the first ten, a line each.
    """
    good: list[T] = []
    shown: list[str] = []
    num_bad = 0
    for row in rows:
        if not isinstance(row, DataError):
            good.append(row)
            continue
        num_bad += 1
        if num_bad <= SHOWN_AT_MOST:
            shown.append(str(row))
    if num_bad == 1:
        raise DataError(shown[0])
    if num_bad:
        first = f"; the first {SHOWN_AT_MOST}:" if num_bad > SHOWN_AT_MOST else ":"
        raise DataError("\n".join((f"{num_bad:,} of {num_bad + len(good):,} rows cannot be used{first}", *shown)))
    return good


def _tried(read: Callable[[R], T], row: R) -> T | DataError:
    try:
        return read(row)
    except DataError as error:
        return error
