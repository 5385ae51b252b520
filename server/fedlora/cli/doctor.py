"""`fedlora doctor`: one line for each thing that was looked at, and for each problem the command that cures it."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from fedlora.common.channels import split_address
from fedlora.common.errors import ConfigError, StoreError
from fedlora.doctor import accelerator, identity, machine, model, network, packages
from fedlora.doctor.finding import Check, Finding, findings_of, problem
from fedlora.doctor.subject import Subject, subject_of

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
    for address in (options.listen, options.server):
        if address is not None:
            split_address(address)
    findings: list[Finding] = []
    subject = Subject()
    try:
        subject = subject_of(options.path)
    except ConfigError as error:
        remedy = f"fedlora simulate --print-config > {options.path}.new, to compare with"
        findings += [problem("file", line, remedy) for line in str(error).splitlines()]
    findings += findings_of(_checks(subject, options))
    if options.as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def _checks(subject: Subject, options: Options) -> dict[str, Check]:
    checks: dict[str, Check] = {
        "python": packages.python,
        "packages": packages.packages,
        "gpu": partial(accelerator.torch_and_gpus, subject),
        "bfloat16": accelerator.half_precision,
        "bitsandbytes": partial(accelerator.bitsandbytes, subject),
        "memory": machine.memory,
        "folders": partial(machine.folders, subject),
        "environment": machine.environment,
        "hub": partial(model.hub, subject),
        "base model": partial(model.base_model, subject),
        "data": partial(model.data, subject),
        "site's certificate": partial(identity.site_certificate, subject),
        "server's certificates": partial(identity.server_certificates, subject),
    }
    if subject.site is None and not _is_served(subject.folder):
        checks["port"] = partial(network.listening, options.listen)
    if options.server is not None:
        checks["server"] = partial(network.reach, options.server, subject)
    return checks


def _is_served(folder: Path | None) -> bool:
    """Return whether the run in `folder` is being served, so that its port is rightly taken."""
    from fedlora.server.status_file import read_status

    if folder is None:
        return False
    try:
        return bool(read_status(folder)["is_running"])
    except StoreError:
        return False


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False, no_color=None if sys.stdout.isatty() else True)
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        remedy = f"  -> {finding.remedy}" if finding.remedy else ""
        line = Text.assemble(
            (f"{finding.status:<8}", _STYLES[finding.status]), f"{finding.check:<{width}}  {finding.found}{remedy}"
        )
        console.print(line, soft_wrap=True)
    counts = {status: sum(finding.status == status for finding in findings) for status in _STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items() if count), soft_wrap=True)
