"""Where log lines go: above the live view where there is one, else to stderr; and to a file."""

import logging
import logging.handlers
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import typer
from rich.console import Console
from rich.logging import RichHandler

from fedlora.cli.json_output import is_asked_for
from fedlora.cli.log_options import LogFormat
from fedlora.client.worker.output import WorkerOutput
from fedlora.common.errors import ConfigError, FedloraError
from fedlora.common.log_lines import JsonLines, TextLines
from fedlora.common.printable import PrintableRecords

# What the live view shows anyway.
VIEWED = "fedlora.progress"

_DRAIN_SECONDS = 2.0


@dataclass(frozen=True)
class Log:
    """Where the log of a long-running command goes.

    Attributes:
        format: of its lines, in the file too.
        file: beside the terminal; None for no file.
        console: where a live view is shown; None where lines go to stderr.
    """

    format: LogFormat = LogFormat.TEXT
    file: Path | None = None
    console: Console | None = None


@contextmanager
def logging_to(log: Log) -> Iterator[None]:
    """Log what happens meanwhile: ours from INFO on, that of libraries from WARNING on, Python's warnings too.

    An error that ends the command is in the log; only in text it is left to the caller to print.

    Raises:
        ConfigError: the file cannot be opened.
    """
    formatter = TextLines() if log.format is LogFormat.TEXT else JsonLines()
    shown: logging.Handler = logging.StreamHandler() if log.console is None else _AboveTheView(log.console)
    kept = [] if log.file is None else [_file_handler(log.file)]
    root, ours = logging.getLogger(), logging.getLogger("fedlora")
    for handler in (shown, *kept):
        handler.setFormatter(formatter)
        handler.addFilter(_is_ours_or_grave)
        # Whoever logs need not ask where a text is from.
        handler.addFilter(PrintableRecords())
        root.addHandler(handler)
    before = root.level, ours.level
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if log.format is LogFormat.TEXT:
            root.removeHandler(shown)
        if kept or log.format is LogFormat.JSON:
            ours.error("%s", error, exc_info=not isinstance(error, FedloraError))
        # In JSON the log has said it, unless the command's own object is to say it as well.
        if log.format is LogFormat.TEXT or (is_asked_for() and isinstance(error, FedloraError)):
            raise
        raise typer.Exit(1) from error
    finally:
        logging.captureWarnings(False)
        for handler in (shown, *kept):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before[0])
        ours.setLevel(before[1])


def log_to(console: Console) -> None:
    """Show warnings alone, without their time, for a command that ends soon."""
    handler = RichHandler(console=console, show_time=False, show_path=False) if console.is_terminal else None
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler] if handler else None)
    for shown in logging.getLogger().handlers:
        shown.addFilter(PrintableRecords())


def _is_ours_or_grave(record: logging.LogRecord) -> bool:
    # A library may set the level of its own loggers, and what it logs comes here all the same.
    return record.name.partition(".")[0] == "fedlora" or record.levelno >= logging.WARNING


class _AboveTheView(logging.Handler):
    """Prints lines above a live view, which shows some of what is logged itself."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.addFilter(lambda record: record.name != VIEWED)

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def _file_handler(path: Path) -> logging.Handler:
    try:
        # A file that somebody moves away, as logrotate does, is opened anew.
        return logging.handlers.WatchedFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"--log-file {path}: cannot be written ({error.strerror}); choose another one") from error


@contextmanager
def terminal_to_ourselves() -> Iterator[None]:
    """Log what libraries and child processes write to standard error, where that is a terminal.

    Python's own streams are rich's affair, which knows nothing of what is written to the descriptor.
    """
    if not os.isatty(2) or any(map(_writes_there, logging.getLogger().handlers)):
        yield
        return
    ours, theirs = multiprocessing.Pipe(duplex=False)
    before = os.dup(2)
    with theirs:
        os.dup2(theirs.fileno(), 2)
    WorkerOutput("fedlora", ours)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        # A child may keep its end for as long as this process lives, so that there is no end to wait for.
        deadline = time.monotonic() + _DRAIN_SECONDS
        while _has_more(ours) and time.monotonic() < deadline:
            time.sleep(0.01)


def _writes_there(handler: logging.Handler) -> bool:
    """Return whether a handler, which some library has added, writes to the descriptor what it would then read."""
    stream = getattr(handler, "stream", None)
    try:
        return stream is not None and stream.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _has_more(pipe: Connection) -> bool:
    try:
        return pipe.poll()
    except OSError:  # Read to its end, and closed.
        return False
