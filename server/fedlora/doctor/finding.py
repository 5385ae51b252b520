"""What a check has found, and how checks are run so that none takes the others down."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedlora.common.errors import FedloraError, one_line


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at, a word or two.
        status: "ok"; "warning" for what may be meant so; "problem" for what will stop a run.
        found: in one line.
        remedy: the command that cures a problem, where there is one.
    """

    check: str
    status: Literal["ok", "warning", "problem"]
    found: str
    remedy: str = ""


Check = Callable[[], Iterable[Finding]]


def ok(check: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, remedy: str = "") -> Finding:
    """Return a finding that may be meant so."""
    return Finding(check, "warning", found, remedy)


def problem(check: str, found: str, remedy: str) -> Finding:
    """Return a finding that will stop a run, with the command that cures it."""
    return Finding(check, "problem", found, remedy)


def findings_of(checks: Mapping[str, Check]) -> list[Finding]:
    """Return what the checks find, in their order; one that breaks is a finding of its own."""
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found.extend(check())
        except FedloraError as error:
            found.extend(problem(name, line, "") for line in str(error).splitlines())
        # A broken driver or package raises whatever it likes, and the other checks matter the more then.
        except Exception as error:
            words = one_line(error, most=200)
            found.append(warning(name, f"cannot be looked at ({type(error).__name__}: {words})"))
    return found
