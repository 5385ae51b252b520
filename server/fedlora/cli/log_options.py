"""`--log-format` and `--log-file`, of the commands that run for days."""

import enum
from pathlib import Path
from typing import Annotated

import typer


class LogFormat(enum.StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    LogFormat, typer.Option("--log-format", help="Log lines for people, or one JSON object a line.")
]
FileOption = Annotated[
    Path | None, typer.Option("--log-file", metavar="FILE", help="Append the log to this file as well.")
]
