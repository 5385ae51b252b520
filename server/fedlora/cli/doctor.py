"""`fedlora doctor`: one line for each thing that was looked at, and for each problem the command that cures it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from fedlora.cli.json_output import print_json_list
from fedlora.common.printable import printable
from fedlora.doctor.examination import examined
from fedlora.doctor.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


@dataclass(frozen=True)
class Options:
    """What was typed."""

    path: Path | None
    server: str | None
    listen: str
    as_json: bool


def run_doctor(options: Options) -> None:
    """Look at everything, print it, and exit 1 if there is a problem.

    Raises:
        ConfigError: an address is none.
    """
    findings = examined(options.path, server=options.server, listen=options.listen)
    if options.as_json:
        print_json_list(findings)
    else:
        _print(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, no_color=None if sys.stdout.isatty() else True)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        remedy = f"  -> {finding.remedy}" if finding.remedy else ""
        found = printable(f"{finding.check:<{width}}  {finding.found}{remedy}")
        line = Text.assemble((f"{finding.status:<8}", _STYLES[finding.status]), found)
        console.print(line, soft_wrap=True)
    counts = {status: sum(finding.status == status for finding in findings) for status in _STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count), soft_wrap=True)
