"""The names of the aggregation methods that are installed, without importing any of them: `--help` shows them."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "fedlora.methods"
DEFAULT = "lora_fair"


@cache
def method_points() -> dict[str, EntryPoint]:
    """Return the methods' entry points by name; where two packages have one name, ours."""
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, not point.value.startswith(f"{GROUP}.")))
    found: dict[str, EntryPoint] = {}
    for point in points:
        found.setdefault(point.name, point)
    return found
