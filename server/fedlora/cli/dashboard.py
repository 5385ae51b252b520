"""`fedlora dashboard`: a page on the runs in a folder."""

import sys
from pathlib import Path

import typer
from rich.console import Console

from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.json_output import print_json_line
from fedlora.cli.logs import log_to
from fedlora.cli.outputs import Said
from fedlora.common.errors import ConfigError
from fedlora.dashboard.serving import Dashboard


def run_dashboard(folder: Path, address: str, *, as_json: bool = False) -> None:
    """Serve the page until the command is interrupted.

    Raises:
        ConfigError: the folder is none, or the address cannot be had.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; expected a run's, or one with runs below it")
    log_to(Console(stderr=True))
    dashboard = Dashboard(folder, address)
    if as_json:
        print_json_line(Said("serving", dashboard.url))
    else:
        print(f"the runs in {folder} are at {dashboard.url}")
        print("Ctrl-C ends it.", flush=True)
    for note in dashboard.notes:
        print(f"note: {note}", file=sys.stderr)
    try:
        with terminated_as_interrupted():
            dashboard.serve()
    except KeyboardInterrupt as interrupt:
        raise typer.Exit(exit_status(interrupt)) from None
