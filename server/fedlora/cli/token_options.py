"""`--token`, `--token-file` and FEDLORA_TOKEN: the ways in which an invitation's token comes to a site."""

import getpass
import os
import sys
from pathlib import Path

from fedlora.common.errors import ConfigError

TOKEN_VARIABLE = "FEDLORA_TOKEN"
ASK = "-"


def token_given(typed: str | None, file: Path | None) -> str | None:
    """Return the token that was given, in whichever way; None where none was.

    What is typed comes before the variable, which children of this process do not see.

    Raises:
        ConfigError: it was given in two ways, or cannot be read.
    """
    variable = os.environ.pop(TOKEN_VARIABLE, None)
    if typed is not None and file is not None:
        raise ConfigError("--token and --token-file are two ways to give one token; leave one of them out")
    if file is not None:
        try:
            return file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise ConfigError(
                f"--token-file {file}: cannot be read ({reason}); expected a file with the token"
            ) from None
    if typed == ASK:
        return _asked()
    return typed if typed is not None else variable or None


def _asked() -> str:
    """Return the token from standard input: from a person without an echo, else the first line."""
    found = getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not found.strip():
        raise ConfigError("--token -: standard input has no token; expected the line that the invitation gave")
    return found.strip()
