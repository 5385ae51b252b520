"""`fedlora schema`: the JSON Schema of what each command prints with --json."""

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Union

from pydantic import TypeAdapter

from fedlora.cli.outputs import Failed
from fedlora.common.errors import ConfigError

_HERE = "fedlora.cli.outputs"

# By command what it prints: kinds here or elsewhere, and whether it is a list, or a line for each.
KINDS: Mapping[str, tuple[str, str]] = {
    "init": (f"{_HERE}:FileBegun", "one"),
    "simulate": (f"{_HERE}:Outcome", "one"),
    "compare": (f"{_HERE}:ComparisonWritten", "one"),
    "plan": ("fedlora.planning.plan:Plan", "one"),
    "aggregate": ("fedlora.cli.aggregate:Aggregated", "one"),
    "methods": (f"{_HERE}:MethodsTold", "one"),
    "export": (f"{_HERE}:FolderWritten", "one"),
    "doctor": ("fedlora.doctor.finding:Finding", "list"),
    # Of a server with a store, what stands behind.
    "server start": (f"{_HERE}:Outcome {_HERE}:Said", "one"),
    "server status": (f"fedlora.server.disk.status_reading:StatusContent {_HERE}:RunsTold", "one"),
    "server stop": (f"{_HERE}:Said", "one"),
    "server renew": (f"{_HERE}:Said", "one"),
    "server audit": (f"{_HERE}:AuditLine", "lines"),
    "sites invite": (f"{_HERE}:Invited", "one"),
    "sites list": (f"{_HERE}:SiteTold", "list"),
    "sites revoke": (f"{_HERE}:Said", "one"),
    "runs submit": (f"{_HERE}:Submitted", "one"),
    "runs list": (f"{_HERE}:RunsTold", "one"),
    "runs show": (f"{_HERE}:RunShown", "one"),
    "runs stop": (f"{_HERE}:RunTold", "one"),
    "client join": (f"{_HERE}:Said", "one"),
    "client status": (f"{_HERE}:SiteStatus", "one"),
    "client pause": (f"{_HERE}:Said", "one"),
    "client resume": (f"{_HERE}:Said", "one"),
    "client leave": (f"{_HERE}:Said", "one"),
    "adapters list": ("fedlora.common.published:Published", "list"),
    "adapters download": (f"{_HERE}:Downloaded", "one"),
    "adapters rollback": (f"{_HERE}:RolledBack", "one"),
    "adapters watch": (f"{_HERE}:Downloaded", "lines"),
    "dashboard": (f"{_HERE}:Said", "lines"),
    "data preview": ("fedlora.training.data_preview:DataPreview", "one"),
}

_SAYS = {
    "one": "One object.",
    "list": "An array of these.",
    "lines": "One of these a line.",
}


def schema_of(command: str) -> dict[str, object]:
    """Return the JSON Schema of what a command prints when it succeeds.

    Raises:
        ConfigError: there is no such command.
    """
    if command not in KINDS:
        raise ConfigError(f"there is no command {command!r} with --json; expected one of {', '.join(KINDS)}")
    number = KINDS[command][1]
    found = TypeAdapter(_kind_of(command)).json_schema(mode="serialization")
    about = f"{_SAYS[number]} {found.pop('description', '')}".strip()
    found = _with_strings_for_numbers(found)
    definitions = found.pop("$defs", {})
    whole = {"type": "array", "items": found} if number == "list" else found
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"fedlora {command} --json",
        "description": about,
        **{key: value for key, value in whole.items() if key != "title"},
        **({"$defs": definitions} if definitions else {}),
    }


def _with_strings_for_numbers(schema: Any) -> Any:
    """Return a schema in which a number may also be one of the strings for what JSON does not have of numbers."""
    if isinstance(schema, list):
        return [_with_strings_for_numbers(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _with_strings_for_numbers(value) for key, value in schema.items()}
    if changed.get("type") == "number":
        return {"anyOf": [changed, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
    return changed


def error_schema() -> dict[str, object]:
    """Return the JSON Schema of what every command prints when it fails."""
    found: dict[str, object] = TypeAdapter(Failed).json_schema(mode="serialization")
    return found


def print_schema(command: str) -> None:
    """Print the schema of a command; without one, by command those of all, and of errors.

    Raises:
        ConfigError: there is no such command.
    """
    found = schema_of(command) if command else {name: schema_of(name) for name in KINDS} | {"error": error_schema()}
    print(json.dumps(found, indent=2))


def _kind_of(command: str) -> Any:
    """Return what a command prints, or one of the list or the lines that it prints."""
    kinds = []
    for where in KINDS[command][0].split():
        module, _, name = where.partition(":")
        kinds.append(getattr(import_module(module), name))
    return Union[tuple(kinds)]  # noqa: UP007 (of kinds that are found here)
