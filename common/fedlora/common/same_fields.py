"""Taking over what two dataclasses have in common, so that a new number is written down once on each."""

from dataclasses import fields
from typing import Any


def same_fields(source: object, kind: type) -> dict[str, Any]:
    """Return what a dataclass holds under the names of another one's fields."""
    names = {field.name for field in fields(source)}  # type: ignore[arg-type]
    return {field.name: getattr(source, field.name) for field in fields(kind) if field.name in names}
