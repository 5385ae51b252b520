"""Whether fedlora has a command, with its options: read as it would be, and not run."""

from collections.abc import Sequence

import click
from typer.main import get_command

from fedlora.cli.main import app


def require_command(words: Sequence[str]) -> None:
    """Check that fedlora takes a command of these words.

    Raises:
        click.UsageError: there is no such command or option, or something is missing.
    """
    command, left, name = get_command(app), list(words), "fedlora"
    context = click.Context(command, info_name=name)
    while isinstance(command, click.Group):
        found, command, left = command.resolve_command(context, left)
        assert command is not None
        name = found or name
        context = click.Context(command, parent=context, info_name=name)
    if "--help" not in left:
        command.make_context(name, left)
