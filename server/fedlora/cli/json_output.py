"""How commands print with --json: one object on standard output and nothing else, errors included."""

import json
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from fedlora.cli.outputs import ErrorText, Failed

OPTION = "--json"
Json = Annotated[
    bool,
    typer.Option(OPTION, help="Print one JSON object and nothing else; fedlora schema COMMAND says of what kind."),
]


def is_asked_for() -> bool:
    """Return whether this process's command was asked for JSON."""
    return OPTION in sys.argv[1:]


def print_json(value: object) -> None:
    """Print a value as one JSON object."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_json_list(values: Iterable[object]) -> None:
    """Print values of one kind as one JSON array."""
    print(json.dumps([_plain(value) for value in values], indent=2, allow_nan=False))


def print_json_line(value: object) -> None:
    """Print a value as one line of JSON, of a command that prints several, as they come."""
    print(json.dumps(_plain(value), allow_nan=False), flush=True)


def print_error(code: str, message: str) -> None:
    """Print what went wrong; the last part of a message of ours says what to do."""
    found, _, hint = message.rpartition("; ")
    # In one line: so it can stand behind those of a command that prints several.
    print_json_line(Failed(ErrorText(code, message, hint if found else "")))


def _plain(value: object) -> object:
    from pydantic import TypeAdapter

    from fedlora.common.codec import finite

    return finite(TypeAdapter(type(value)).dump_python(value, mode="json"))
