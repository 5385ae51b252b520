"""A run's audit log, page by page, the newest entry first, with what its chain of digests says."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.common.printable import printable
from fedlora.common.run_folder import AUDIT_FILE
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.server.disk.audit import Audit, Entry, audit_in
from fedlora.server.report.content import Columns, Table, table
from fedlora.server.report.wording import bytes_text, count_text

NUM_ON_A_PAGE = 100
_MOST_BYTES = 128 << 20
_LONGEST = 400
_KNOWN = ("line", "at", "event", "site", "round", "previous")


@dataclass(frozen=True)
class AuditPage:
    """A page of a log.

    Attributes:
        verdict: whether the chain holds, in a sentence or two.
        holds: whether it does.
        newer, older: the pages beside it, from 1; None where there is none.
    """

    verdict: str
    holds: bool
    entries: Table
    number: int
    num_pages: int

    @property
    def newer(self) -> int | None:
        """The page before, which has newer entries."""
        return self.number - 1 if self.number > 1 else None

    @property
    def older(self) -> int | None:
        """The page behind, which has older entries."""
        return self.number + 1 if self.number < self.num_pages else None


class AuditReader:
    """Reads the log in one folder, and again only when it has changed. For several threads."""

    def __init__(self, folder: PlainFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._mark, self._audit = "", Audit((), audit_in(b"").head)

    def page(self, number: int) -> AuditPage | None:
        """Return a page, the nearest there is; None where there is no log."""
        found = self._folder.stat(AUDIT_FILE)
        if found is None:
            return None
        if found.st_size > _MOST_BYTES:
            said = f"The log has {bytes_text(found.st_size)}, too much for a page: `fedlora server audit` reads it."
            return AuditPage(said, False, _table(()), 1, 1)
        audit = self._read()
        entries = audit.entries[::-1]
        num_pages = max(1, -(-len(entries) // NUM_ON_A_PAGE))
        number = min(max(1, number), num_pages)
        shown = entries[(number - 1) * NUM_ON_A_PAGE : number * NUM_ON_A_PAGE]
        return AuditPage(verdict(audit), not audit.fault, _table(shown), number, num_pages)

    def _read(self) -> Audit:
        with self._lock:
            if (mark := self._folder.mark(AUDIT_FILE)) != self._mark:
                self._audit = audit_in(self._folder.read(AUDIT_FILE, most_bytes=_MOST_BYTES) or b"")
                self._mark = mark
            return self._audit


def verdict(audit: Audit) -> str:
    """Return whether a log's chain holds."""
    num = count_text(len(audit.entries), "entry") if len(audit.entries) == 1 else f"{len(audit.entries):,} entries"
    if audit.fault:
        return f"The chain is broken: {printable(audit.fault)}. The {num} before it hold; compare with a copy."
    if not audit.entries:
        return "The log is empty."
    cut = f" Then {count_text(audit.cut_bytes, 'byte')} of a line that was cut off." if audit.cut_bytes else ""
    return f"The chain holds: {num}, the last with the sha256 {audit.head.sha256}.{cut}"


def _table(entries: Sequence[Entry]) -> Table:
    return table("Entries, the newest first", _COLUMNS, entries, num_text_columns=3)


def _others(entry: Entry) -> str:
    """Return what an entry says beside what it has a column for."""
    parts = []
    for key, value in entry.items():
        if key in _KNOWN or value in ("", None, []):
            continue
        said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if isinstance(value, dict):
            said = json.dumps(value)
        parts.append(f"{key.replace('_', ' ')}: {said[:12] + '…' if key.endswith('sha256') else said}")
    return _text("; ".join(parts))


def _text(said: object) -> str:
    return printable(said, most=_LONGEST)


_COLUMNS: Columns[Entry] = (
    ("event", lambda entry: _text(entry.get("event", ""))),
    ("site", lambda entry: _text(entry.get("site", ""))),
    ("what", _others),
    ("at, UTC", lambda entry: _text(entry.get("at", "")).replace("T", " ")[:19]),
    ("round", lambda entry: _text(entry.get("round", ""))),
    ("line", lambda entry: _text(entry.get("line", ""))),
)
