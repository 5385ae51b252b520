"""What commands print with --json: one object each, of the kinds here or of those that the command is about.

`fedlora schema COMMAND` prints a kind's JSON Schema. A number that JSON does not have is a string in all of them:
"NaN", "Infinity", "-Infinity". An error is an object whose one key is "error", and the exit status is as ever:
0 is done, 1 what a user can mend, 2 a command that was typed wrong, 130 and 143 an interruption.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from typing_extensions import TypedDict

from fedlora.privacy.spent import Spent


@dataclass(frozen=True)
class ErrorText:
    """What went wrong.

    Attributes:
        code: of a small set: config, data, model, adapter, store, run, usage, interrupted; a run's own beside them.
        message: one line for people: what was found, what was expected, what to do.
        hint: what of it says what to do; empty where that is not said apart.
    """

    code: str
    message: str
    hint: str


@dataclass(frozen=True)
class Failed:
    """What every command prints in place of its own object when it fails."""

    error: ErrorText


@dataclass(frozen=True)
class Said:
    """Of a command that does one thing: what was done, in words, to what."""

    done: str
    name: str = ""


@dataclass(frozen=True)
class Outcome:
    """A run that is over, or was stopped.

    Attributes:
        folder: the run's; adapter, best and report lie there.
        adapter, best: PEFT folders: the newest adapter, and that of the best round by the clients' validation, if any.
        rounds: that are over, after the start.
        metric: its name; of `before`, `after` and `groups`, which are held out.
        groups: by name the metric before and after.
        refused: updates.
        epsilon: what the global adapters tell of one client at most; None in a run without noise.
    """

    run: str
    folder: str
    adapter: str
    best: str | None
    report: str
    rounds: int
    ended_early: bool
    metric: str
    before: float | None
    after: float | None
    groups: Mapping[str, tuple[float | None, float | None]]
    refused: int
    seconds: float
    epsilon: float | None = None


@dataclass(frozen=True)
class FileBegun:
    """A file that was written to begin with, and the commands that come next."""

    file: str
    then: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonWritten:
    """What a comparison has shown.

    Attributes:
        finding: its first line.
        comparison: the file with all of it.
    """

    finding: str
    notes: tuple[str, ...]
    comparison: str
    tables: str
    report: str


@dataclass(frozen=True)
class MethodTold:
    """An aggregation method.

    Attributes:
        trains: the factors that clients train in odd and in even rounds.
        not_with: what it does not go with.
    """

    name: str
    title: str
    summary: str
    is_default: bool
    settings: Mapping[str, object]
    trains: tuple[tuple[str, ...], ...]
    changes_base: bool
    needs_every_pair: bool
    not_with: tuple[str, ...]


@dataclass(frozen=True)
class MethodsTold:
    """All methods that are installed, and by entry point why others cannot be used."""

    methods: tuple[MethodTold, ...]
    broken: Mapping[str, str]


@dataclass(frozen=True)
class FolderWritten:
    """A folder that was exported.

    Attributes:
        largest_difference: of a merged model's logits to those of the adapter on its base; None of an adapter.
    """

    folder: str
    base_model: str
    is_merged: bool
    size_bytes: int
    largest_difference: float | None


@dataclass(frozen=True)
class Invited:
    """A site that may take part.

    Attributes:
        token: good once, for so many hours; None where it is written to `token_file`, and with a PKI of one's own.
        join: the line to type at the site.
    """

    site: str
    runs: tuple[str, ...]
    token: str | None
    token_file: str | None
    hours: float | None
    join: str


@dataclass(frozen=True)
class ServerKnown:
    """A server that a site has enrolled with, and when its certificate ends, in UTC and ISO 8601."""

    address: str
    certificate_ends: str


@dataclass(frozen=True)
class SiteStatus:
    """A site's client that is at work, or paused.

    Attributes:
        damaged: what of the site's identities cannot be read, in words.
        spent: what runs whose examples are private have spent of that, by the site's ledger; None without any.
    """

    name: str
    state: str
    servers: tuple[ServerKnown, ...]
    damaged: tuple[str, ...]
    spent: Spent | None = None


@dataclass(frozen=True)
class SiteTold:
    """What the server knows of a site; the times are in UTC and ISO 8601."""

    name: str
    runs: tuple[str, ...]
    status: str
    invitation_expires: str | None
    certificate_ends: str | None


class AuditLine(TypedDict):
    """An entry of an audit log; what more it has depends on its event."""

    line: int
    at: str
    event: str
    previous: str


@dataclass(frozen=True)
class RunTold:
    """A run of a store."""

    name: str
    state: str
    detail: str
    submitted: str


@dataclass(frozen=True)
class RunsTold:
    """The runs of a store, in their order, and who serves them."""

    is_served: bool
    server: Mapping[str, object]
    runs: tuple[RunTold, ...]


@dataclass(frozen=True)
class RunShown:
    """A run of a store, with the status that its server has written last: as of server status."""

    run: RunTold
    folder: str
    status: Mapping[str, object] | None


@dataclass(frozen=True)
class Submitted:
    """A run that waits, with so many before it."""

    name: str
    num_before: int
    is_served: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RolledBack:
    """Which adapter is offered in place of newer versions, which are withdrawn; None where all are offered again."""

    offered: str | None
    withdrawn: tuple[int, ...]


@dataclass(frozen=True)
class Downloaded:
    """An adapter that is here."""

    folder: str
    name: str
    version: int
