"""The methods by their name in a run file: each is an entry point, ours like those of other packages.

[project.entry-points."fedlora.methods"]
my_method = "my_package.my_method:MyMethod"
"""

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint

from fedlora.common.errors import ConfigError, one_line
from fedlora.common.method_names import DEFAULT, method_points
from fedlora.methods.method import Method


class _Methods(Mapping[str, type[Method]]):
    """The classes by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> type[Method]:
        return _load(method_points()[name])

    def __contains__(self, name: object) -> bool:
        return name in method_points()

    def __iter__(self) -> Iterator[str]:
        return iter(method_points())

    def __len__(self) -> int:
        return len(method_points())


METHODS: Mapping[str, type[Method]] = _Methods()


def default_method() -> Method:
    """Return the method of a run that names none, LoRA-FAIR's."""
    return METHODS[DEFAULT]()


def title_of(name: str) -> str:
    """Return how a report calls the method of that name, which need not be installed here."""
    try:
        return METHODS[name].title or name
    except (KeyError, ConfigError):
        return name


def names_of(is_wanted: Callable[[type[Method]], bool]) -> str:
    """Return the names of the methods that are as wanted, separated by commas, for an error."""
    return ", ".join(name for name, kind in loadable_methods()[0].items() if is_wanted(kind))


def why_no_sums(method: Method) -> tuple[str, str] | None:
    """Return why a method is not made of sums and the names of those that are, for an error; None if it is."""
    if not (method.needs_every_pair or method.changes_base):
        return None
    why = "takes every client's pair by itself" if method.needs_every_pair else "changes the base weights"
    return why, names_of(lambda kind: not kind.changes_base and not kind().needs_every_pair)


def loadable_methods() -> tuple[dict[str, type[Method]], dict[str, str]]:
    """Return the methods that can be imported, by name, and why the others cannot: one package must not spoil all."""
    found: dict[str, type[Method]] = {}
    broken: dict[str, str] = {}
    for name in METHODS:
        try:
            found[name] = METHODS[name]
        except ConfigError as error:
            broken[name] = str(error)
    return found, broken


def _load(point: EntryPoint) -> type[Method]:
    """Return the class that an entry point names.

    Raises:
        ConfigError: it cannot be imported, or is no method of that name.
    """
    try:
        kind = point.load()
    # It is another package's code: whatever it raises is theirs to read.
    except Exception as error:
        raise ConfigError(f"aggregation.method: {point.name!r} cannot be imported ({one_line(error)})") from error
    if not (isinstance(kind, type) and issubclass(kind, Method) and getattr(kind, "name", "") == point.name):
        raise ConfigError(
            f"aggregation.method: {point.value} is no method of the name {point.name!r}; expected a subclass of "
            f"fedlora.methods.Method with that name"
        )
    if needed := [key for key, field in kind.model_fields.items() if field.is_required()]:
        raise ConfigError(f"aggregation.method: {point.value} has a setting without a default: {needed[0]}")
    return kind
