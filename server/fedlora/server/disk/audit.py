"""The audit log of a run: `audit.jsonl` in its folder, one entry a line, appended and synced, in a chain.

    {"line": 2, "at": "2026-01-31T12:00:00.000+00:00", "event": "enrolled", "site": "north", "previous": "sha256 ..."}

`previous` is the sha256 of the line before, without its line feed: whoever changes, removes or adds a line anywhere but
at the end breaks the chain there. The end itself a chain cannot hold: the sha256 of the last line, the *head*, is told
elsewhere as well (`server status`, the end of a run, manifest.json), so that an auditor can compare. The first entry
has the run's id.

A line that a crash has cut off is never removed. The next entry stands behind it, says how long it is and what its
sha256 is, and carries on the chain from the last whole line: what was in the file is still there to be looked at.

The server and the command line write to one log: each append holds it alone.
"""

import fcntl
import hashlib
import io
import json
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.files import append_to_file, sync_folder, unwritable
from fedlora.common.parsing import json_in
from fedlora.common.printable import printable
from fedlora.common.run_folder import AUDIT_FILE

BEGUN, CUT = "begun", "cut"
_LONGEST_TEXT = 300

Entry = Mapping[str, object]


@dataclass(frozen=True)
class Head:
    """Where a log ends: its number of lines, and the sha256 of the last of them."""

    num_lines: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Audit:
    """What a log holds, as far as its chain holds.

    Attributes:
        entries: those before the first line that does not hold.
        head: the last line that holds.
        fault: what is wrong with the line after it; empty where all lines hold.
        cut_bytes: of a last line that a crash has cut off, and that nothing stands behind yet.
    """

    entries: tuple[Entry, ...]
    head: Head
    fault: str = ""
    cut_bytes: int = 0


class AuditLog:
    """The audit log in a run's folder; safe to use from several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / AUDIT_FILE
        self._lock = threading.Lock()
        self._read_bytes = 0
        self._head = Head()
        self._cut = b""

    def append(self, *entries: Entry) -> Head:
        """Add entries, each with its `event`, and return where the log ends; the first of all makes the log.

        Raises:
            StoreError: the disk is full or the file cannot be written; then nothing was added.
        """
        with self._lock, self._held() as file:
            self._catch_up(file)
            head, lines, cut = self._head, b"", {}
            if self._cut:
                lines = b"\n"
                is_whole = _parsed(self._cut) is not None
                head = Head(head.num_lines + 1, _sha256(self._cut) if is_whole else head.sha256)
                cut = {} if is_whole else {"cut_bytes": len(self._cut), "cut_sha256": _sha256(self._cut)}
            if not head.sha256:
                entries = ({"event": BEGUN, "run_id": uuid.uuid4().hex, **cut}, *entries)
            elif cut:
                entries = ({"event": CUT, **cut}, *entries)
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            for entry in entries:
                number = head.num_lines + 1
                line = _line({"line": number, "at": now, **_printable(entry), "previous": head.sha256})
                lines += line + b"\n"
                head = Head(number, _sha256(line))
            self._write(file, lines)
            self._head, self._cut = head, b""
            return head

    def head(self) -> Head:
        """Return where the log ends; nowhere where there is none, or it cannot be read."""
        with self._lock:
            try:
                with open(self._path, "rb", buffering=0) as file:
                    self._catch_up(file)
            except OSError:
                return Head()
            return self._head

    @contextmanager
    def _held(self) -> Iterator[io.FileIO]:
        try:
            is_new = not self._path.exists()
            with open(self._path, "a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if is_new:
                    sync_folder(self._path.parent)
                yield file
        except OSError as error:
            raise unwritable(self._path, 0, error) from error

    def _catch_up(self, file: io.FileIO) -> None:
        """Read what has been added since this object last looked."""
        if (size := os.fstat(file.fileno()).st_size) < self._read_bytes:
            self._read_bytes, self._head = 0, Head()
        file.seek(self._read_bytes)
        raw = file.read(size - self._read_bytes)
        *lines, self._cut = raw.split(b"\n")
        for line in lines:
            # Over a line that was cut off goes the chain; a whole one is a link whatever it says: `read_audit` judges.
            is_whole = _parsed(line) is not None
            self._head = Head(self._head.num_lines + 1, _sha256(line) if is_whole else self._head.sha256)
        self._read_bytes = size - len(self._cut)

    def _write(self, file: io.FileIO, lines: bytes) -> None:
        before = os.fstat(file.fileno()).st_size
        append_to_file(self._path, lines)
        self._read_bytes = before + len(lines)


def run_id_in(folder: Path) -> str | None:
    """Return the run's id that the audit log in a folder began with, or None where there is none."""
    try:
        with open(folder / AUDIT_FILE, "rb") as file:
            # The very first line may have been cut off.
            lines = [_parsed(file.readline()) for _ in range(2)]
    except OSError:
        return None
    found = next((line.get("run_id") for line in lines if line is not None), None)
    return found if isinstance(found, str) and found else None


def read_audit(folder: Path) -> Audit:
    """Return what the audit log in a folder holds, each line checked against the one before.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    path = folder / AUDIT_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError(f"{folder}: no {AUDIT_FILE}; expected the folder given to server start") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    return audit_in(raw)


def audit_in(raw: bytes) -> Audit:
    """Return what a log's bytes hold, each line checked against the one before."""
    *lines, rest = raw.split(b"\n")
    entries: list[Entry] = []
    head, cut = Head(), b""
    for number, line in enumerate(lines, 1):
        entry = _parsed(line)
        if entry is None and not cut and number < len(lines):
            # Of a cut line the one behind it must speak.
            cut = line
            continue
        if fault := _fault(entry, number=number, previous=head.sha256, cut=cut):
            at = number - 1 if cut else number
            return Audit(tuple(entries), head, f"line {at} does not hold: {fault}")
        assert entry is not None
        entries.append(entry)
        head, cut = Head(number, _sha256(line)), b""
    return Audit(tuple(entries), head, cut_bytes=len(rest))


def _fault(entry: Entry | None, *, number: int, previous: str, cut: bytes) -> str:
    """Return what is wrong with a line, nothing where it holds."""
    if entry is None:
        return "it is no entry"
    if cut and (entry.get("cut_bytes"), entry.get("cut_sha256")) != (len(cut), _sha256(cut)):
        return "it is no entry, and the one behind it does not say that it was cut off"
    if not cut and "cut_bytes" in entry:
        return "it speaks of a cut line that is not there"
    if not previous and (entry.get("event") != BEGUN or not entry.get("run_id")):
        return "it is not the begin of a log"
    if entry.get("line") != number:
        return f"it says that it is line {entry.get('line')}"
    if entry.get("previous") != previous:
        return f"it stands behind a line with the sha256 {entry.get('previous')}, and that before it has {previous}"
    return ""


def _parsed(line: bytes) -> dict[str, object] | None:
    try:
        found = json_in(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "previous" in found else None


def _line(entry: Entry) -> bytes:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()


def _printable(entry: Entry) -> dict[str, object]:
    return {
        key: printable(value, most=_LONGEST_TEXT) if isinstance(value, str) else value for key, value in entry.items()
    }


def _sha256(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def rounds_in(entries: Sequence[Entry]) -> int:
    """Return the newest round whose end is in a log, -1 where there is none."""
    numbers = (entry.get("round") for entry in entries if entry.get("event") == "round")
    return max((number for number in numbers if isinstance(number, int)), default=-1)
