"""JSON and TOML of which nobody knows who wrote them: what is nested deeper than Python reads is malformed as well."""

import json
import tomllib
from typing import Any

_TOO_DEEP = "lists or objects are nested too deeply"


def json_in(text: str | bytes) -> Any:
    """Return the value that is written in JSON.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def toml_in(text: str) -> dict[str, Any]:
    """Return the table that is written in TOML.

    Raises:
        tomllib.TOMLDecodeError: it is no TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise tomllib.TOMLDecodeError(_TOO_DEEP) from error
