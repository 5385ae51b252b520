"""The trackers by their name: each is an entry point, ours like those of other packages."""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from fedlora.common.errors import ConfigError, one_line
from fedlora.trackers.tracker import OpenTracker

GROUP = "fedlora.trackers"
# What ours need is in the extra of the same name.
_OURS = f"{GROUP}."


def tracker_points() -> dict[str, EntryPoint]:
    """Return the trackers' entry points by name; where two packages have one name, ours."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, not point.value.startswith(_OURS))):
        found.setdefault(point.name, point)
    return found


def load_trackers(names: Iterable[str]) -> Mapping[str, OpenTracker]:
    """Return what opens the trackers of these names.

    Raises:
        ConfigError: there is none of a name, it cannot be imported, or what it needs is not installed.
    """
    points = tracker_points()
    found = {}
    for name in names:
        if name not in points:
            raise ConfigError(f"--track {name!r} is no tracker; expected one of {', '.join(sorted(points))}")
        found[name] = _load(points[name])
    return found


def _load(point: EntryPoint) -> OpenTracker:
    if point.value.startswith(_OURS) and find_spec(point.name) is None:
        raise ConfigError(f"--track {point.name} needs {point.name}: pip install 'fedlora[{point.name}]'")
    try:
        loaded = point.load()
    # It is another package's code: whatever it raises is theirs to read.
    except Exception as error:
        raise ConfigError(f"--track {point.name}: {point.value} cannot be imported ({one_line(error)})") from error
    if not callable(loaded):
        raise ConfigError(f"--track {point.name}: {point.value} is no function; expected one that returns a Tracker")
    opened: OpenTracker = loaded
    return opened
