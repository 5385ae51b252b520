"""What of a run's events stands in its audit log: who came and went, what counted, what was refused, who took what.

Entries of a kind that a stranger or a hostile site can cause as often as it likes are bounded; see `Hourly`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.run_folder import AUDIT_FILE
from fedlora.server.disk.audit import Audit, AuditLog, Entry, Head, read_audit, rounds_in
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import (
    AdapterFetched,
    CallsRefused,
    Enrolled,
    Event,
    Listener,
    NotPublished,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    UpdateArrived,
)
from fedlora.server.record.hourly import Hourly
from fedlora.server.record.round_report import RoundReport

logger = logging.getLogger(__name__)


@contextmanager
def audited(folder: Path, listener: Listener) -> Iterator[tuple[Listener, Callable[[Entry], None]]]:
    """Give a listener that writes to the audit log of a run's folder, and what writes one entry more.

    A log whose chain does not hold is said, and carried on: what was changed in it stays to be seen. At the end the
    manifest names where the log ends.
    """
    log, known = AuditLog(folder), Audit((), Head())
    if (folder / AUDIT_FILE).exists():
        known = read_audit(folder)
        if known.fault:
            logger.warning("%s: %s; fedlora server audit says more", folder / AUDIT_FILE, known.fault)
    heard = Audited(log, listener, known=known.entries)
    try:
        yield heard, heard.note
    finally:
        heard.close()
        _tell_manifest(folder, log.head())


def _tell_manifest(folder: Path, head: Head) -> None:
    store = RunFolder(folder)
    try:
        if head.sha256 and (manifest := store.manifest()) is not None:
            store.write_manifest(manifest | {"audit": {"lines": head.num_lines, "head": head.sha256}})
    except StoreError as error:
        logger.error("the manifest does not name the audit log's end: %s", error)


class Audited:
    """A listener that writes to the audit log, and tells another everything. It never keeps a run from going on."""

    def __init__(
        self,
        log: AuditLog,
        listener: Listener,
        *,
        known: tuple[Entry, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`known` are the entries that the log has."""
        self._log = log
        self._listener = listener
        self._last_round = rounds_in(known)
        self._hourly = Hourly(clock=clock)
        self._lock = threading.Lock()
        self._digests: dict[str, str] = {}
        self._sites: dict[str, str] = {}
        self._num_missed = 0

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._write(list(self._entries(event)))
        self._listener(event)

    def note(self, entry: Entry) -> None:
        """Write an entry that is of no event."""
        with self._lock:
            self._write([entry])

    def close(self) -> None:
        """Write how many entries were only counted."""
        with self._lock:
            self._write(list(self._counted(is_over=True)))

    def _entries(self, event: Event) -> Iterator[Entry]:
        yield from self._counted(is_over=False)
        match event:
            case SiteChanged():
                yield from self._moved(event)
            case RunStarted():
                yield {"event": "run", "sites": list(event.clients), "next_round": event.next_round}
                for report in event.reports:
                    yield from self._round(report)
            case RoundStarted():
                self._digests.clear()
                yield {"event": "asked", "round": event.round, "sites": list(event.cohort)}
            case UpdateArrived():
                self._digests[event.client] = event.wire_sha256
            case RoundEnded():
                yield from self._round(event.report)
            case Enrolled():
                name = "renewed" if event.is_renewal else "enrolled"
                yield from self._bounded(event.site, {"event": name, "site": event.site, "address": event.address})
            case NotPublished():
                yield {"event": "not published", "round": event.round, "reason": event.why}
            case CallsRefused():
                who = {"site": event.site, "address": event.address, "num": event.num}
                yield from self._bounded(event.code, {"event": "refused", "reason": event.code, **who})
            case AdapterFetched():
                yield from self._bounded(event.site, {"event": "fetched", "site": event.site, "adapter": event.adapter})

    def _moved(self, event: SiteChanged) -> Iterator[Entry]:
        is_away, was_away = event.state == "away", self._sites.get(event.site, "away") == "away"
        self._sites[event.site] = event.state
        if is_away != was_away:
            name = "left" if is_away else "joined"
            yield from self._bounded(event.site, {"event": name, "site": event.site, "detail": event.detail})

    def _round(self, report: RoundReport) -> Iterator[Entry]:
        """Yield what became of a round, unless the log has it: of one that a crash kept from it a later start tells."""
        if report.round <= self._last_round:
            return
        self._last_round = report.round
        for client, part in report.clients.items():
            yield {
                "event": "counted", "round": report.round, "site": client, "wire_sha256": part.wire_sha256,
                "num_examples": part.num_examples, "share": 0.0 if part.share is None else round(part.share.given, 9),
                "flag": "zero" if part.is_zero else "unchanged" if part.is_unchanged else "",
            }  # fmt: skip
        for client, reason in report.refused.items():
            sha256 = self._digests.get(client, "")
            yield {"event": "not counted", "round": report.round, "site": client, "reason": reason,
                   "wire_sha256": sha256}  # fmt: skip
        yield {"event": "round", "round": report.round, "adapter_sha256": report.adapter_sha256}

    def _bounded(self, about: str, entry: Entry) -> Iterator[Entry]:
        """Yield an entry if its kind has not had enough of them in this hour; else it is counted."""
        num = entry.get("num", 1)
        if self._hourly.admits(str(entry["event"]), about, num if isinstance(num, int) else 1):
            yield entry

    def _counted(self, *, is_over: bool) -> Iterator[Entry]:
        """Yield the numbers of hours that are over."""
        for kind, about, num in self._hourly.counted(is_over=is_over):
            yield {"event": "counted only", "of": kind, "about": about, "num": num}

    def _write(self, entries: list[Entry]) -> None:
        if not entries:
            return
        missed: list[Entry] = [{"event": "missed", "num": self._num_missed}] if self._num_missed else []
        try:
            self._log.append(*missed, *entries)
        except StoreError as error:
            if not self._num_missed:
                logger.error("the audit log cannot be written: %s", error)
            self._num_missed += len(entries)
        else:
            self._num_missed = 0
