"""A mapping whose values are made whenever they are asked for, so that they take memory only while they are used."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class OnDemand(Mapping[str, Value]):
    """The values that `make` gives for some keys.

    Attributes:
        outline: the same keys with values that say the shapes, types and scaling of those here, and cost less.
    """

    def __init__(
        self, keys: Collection[str], make: Callable[[str], Value], outline: Mapping[str, Value] | None = None
    ) -> None:
        self._keys = keys
        self._make = make
        self.outline: Mapping[str, Value] = self if outline is None else outline

    def __getitem__(self, key: str) -> Value:
        if key not in self._keys:
            raise KeyError(key)
        return self._make(key)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
