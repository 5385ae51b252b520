"""The errors of fedlora, one tree.

FedloraError                what a user, a file or a peer did; commands print it as one line
    ConfigError             the run file or a command's option: unknown key, wrong type, impossible combination
    DataError               a data set: missing, unreadable, an unknown column, a client without examples
    ModelError              a base model: missing, unreadable, target modules or rank that do not fit
    AdapterError            an adapter: missing, unreadable, tensors that do not fit
    StoreError              a run folder: holds another run, cannot be written, is damaged
        DiskFull            there is no room on its disk: once there is, the same works
    RunError                a run that cannot go on: no client, no accepted update, a failed client

A message says what was found, what was expected and what to do. A programmer's wrong argument is a
ValueError, and anything else is a bug that shows its traceback.
"""

import re

from fedlora.common.printable import printable


class FedloraError(Exception):
    """Base of all errors that a user or a peer caused.

    `code` is the short, closed vocabulary in which a client may name the error to a server: a
    message's text can hold paths or labels and stays at the site.
    """

    code = "error"


class ConfigError(FedloraError):
    """The run file or a command's option."""

    code = "config"


class DataError(FedloraError):
    """A data set that cannot be used."""

    code = "data"


class ModelError(FedloraError):
    """A base model that cannot be used."""

    code = "model"


class AdapterError(FedloraError):
    """An adapter that cannot be used."""

    code = "adapter"


class StoreError(FedloraError):
    """A run folder that cannot be used."""

    code = "store"


class DiskFull(StoreError):  # noqa: N818 (what happened)
    """There is no room for a file."""


class RunError(FedloraError):
    """A run that cannot go on."""

    code = "run"


_CREDENTIALS = re.compile(r"//[^/@\s]+@")

# An error, or what became of an example, travels as a code.
CODE = "[a-z_]{1,40}"


def one_line(said: Exception | str, *, most: int = 300) -> str:
    """Return what an error of a library or a peer says, in one line of at most `most` characters.

    Names and passwords in addresses (`https://name:password@host`) are left out: the line goes to logs and reports.
    """
    words = _CREDENTIALS.sub("//…@", " ".join(str(said).split()))
    return printable(words or ("" if isinstance(said, str) else type(said).__name__), most=most)
