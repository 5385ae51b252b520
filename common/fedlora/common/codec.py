"""Dataclasses to and from JSON that every reader accepts."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


class Codec(Generic[T]):
    """Writes and reads one dataclass, nested ones included.

    JSON has no nan and no infinity, and a diverged run has both: they are written as the strings "NaN", "Infinity"
    and "-Infinity", and read back as numbers.
    """

    def __init__(self, kind: type[T]) -> None:
        self._adapter: TypeAdapter[T] = TypeAdapter(kind)

    def dump(self, value: T, *, leave_out: Collection[str] | Mapping[str, Collection[str]] = ()) -> str:
        """Return `value` as one line of JSON, without the fields in `leave_out`, or those in it of a nested one."""
        without: Any = set(leave_out)
        if isinstance(leave_out, Mapping):
            without = {name: set(parts) for name, parts in leave_out.items()}
        fields = self._adapter.dump_python(value, exclude=without)
        return json.dumps(finite(fields), ensure_ascii=False, allow_nan=False)

    def load(self, text: str | bytes) -> T:
        """Return the value in one line of JSON.

        Raises:
            ValueError: the line is cut short, or not of this kind; the message says where.
        """
        return self._adapter.validate_json(text)


def finite(value: Any) -> Any:
    """Return a JSON value with what JSON does not have of numbers as strings: "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
