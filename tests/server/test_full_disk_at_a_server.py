"""A server whose disk is full says so once, waits, and goes on when there is room again."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from stub_runs import run_config, served
from stub_site import StubSite

from fedlora.cli.server_view import status_lines
from fedlora.common.errors import DiskFull
from fedlora.common.files import append_to_file, write_file
from fedlora.server.disk.audit import AuditLog, read_audit
from fedlora.server.disk.space import DiskWatch
from fedlora.server.disk.status_file import StatusFile, read_status
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.events import DiskSpace, Event, RoundEnded, UpdateArrived, Waiting
from fedlora.server.record.running_summary import Summarised


@contextmanager
def small_disk(at: Path, *, megabytes: int) -> Iterator[Path]:
    """Give a disk of its own of so many megabytes; skip the test where nobody may make one."""
    at.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(at)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs a small disk of its own, which only root can make")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(folder: Path) -> Path:
    """Fill the disk of a folder to the last byte, and return the file that does."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(os.urandom(1 << 16)):
                pass
        except OSError:
            return path
    raise AssertionError("it is never full")


def test_what_is_written_to_a_full_disk_is_whole_or_absent(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        write_file(disk / "kept", b"former")
        (disk / "lines").write_bytes(b"first\n")
        log = AuditLog(disk)
        log.append({"event": "joined", "site": "anna"})
        filler = fill(disk)
        with pytest.raises(DiskFull, match="No space left"):
            write_file(disk / "kept", b"new" * 10_000)
        with pytest.raises(DiskFull):
            append_to_file(disk / "lines", b"second\n" * 10_000)
        with pytest.raises(DiskFull):
            log.append(*({"event": "joined", "site": f"site-{number}"} for number in range(1_000)))
        assert (disk / "kept").read_bytes() == b"former"
        assert (disk / "lines").read_bytes() == b"first\n"
        found = read_audit(disk)
        assert (found.fault, found.cut_bytes) == ("", 0)
        filler.unlink()
        log.append({"event": "left", "site": "anna"})
        assert read_audit(disk).fault == ""


def test_a_run_waits_for_room_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", megabytes=160) as disk:
        config, folder = run_config(2, federation={"rounds": 3}), disk / "run"
        said: list[DiskSpace] = []
        statuses: list[dict[str, object]] = []
        fillers: list[Path] = []
        waited: list[str] = []
        stuck: list[str] = []

        def room() -> None:
            """Wait until the operator can see it, then make room."""
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                status = read_status(folder)
                if status["disk"]:
                    statuses.append(status)
                    break
                time.sleep(0.05)
            fillers.pop().unlink()

        def listen(event: Event) -> None:
            if isinstance(event, DiskSpace):
                said.append(event)
            is_first = isinstance(event, UpdateArrived) and event.round == 1 and not said
            if not fillers and (is_first or (isinstance(event, RoundEnded) and event.report.round == 2)):
                fillers.append(fill(disk))
                threading.Thread(target=room, daemon=True).start()

        sites = [StubSite(name, tmp_path / name) for name in ("anna", "bert")]
        status_file = StatusFile(folder, config)
        summarised = Summarised([status_file.show])

        def both(event: Event) -> None:
            summarised(event)
            if isinstance(event, Waiting):
                waited.append(event.what)
            elif isinstance(event, RoundEnded):
                stuck.append(summarised.summary.waiting_for)
            listen(event)

        folder.mkdir()
        with caplog.at_level("WARNING"), status_file:
            served(config, folder, sites, listener=both)
        checkpoint = RunFolder(folder).latest()
        assert checkpoint is not None
        assert checkpoint.round == 3
        assert all(len(report.clients) == 2 for report in checkpoint.reports[1:])
        assert [event.is_short for event in said] == [True, False] * (len(said) // 2)
        assert len(statuses) == 2
        assert any("no room on the disk" in what for what in waited)
        assert stuck == [""] * 4, "nothing is waited for once it is written"
        lines = [line for line in status_lines({**statuses[0], "is_running": True}) if line.startswith("  disk")]
        assert len(lines) == 1
        assert str(folder) in lines[0]
        warned = [record.getMessage() for record in caplog.records if "the disk is too full" in record.getMessage()]
        assert len(warned) == len(said) // 2, "once each time"
        assert read_audit(folder).fault == ""

    # And to the last bit what it is without.
    served(config, tmp_path / "other", sites)
    other = RunFolder(tmp_path / "other").latest()
    assert other is not None
    assert other.stored.sha256 == checkpoint.reports[3].adapter_sha256


def test_a_full_disk_is_said_at_the_start_and_rarely_after(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now, said, needed = 0.0, list[Event](), 1 << 60
    folder = tmp_path / "not yet"
    watch = DiskWatch(folder, said.append, needed_bytes=lambda: needed, clock=lambda: now)
    for second in range(700):
        now = float(second)
        watch.look()
    assert len(said) == 1
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2
    needed = 0
    watch.look()
    assert [event.is_short for event in said if isinstance(event, DiskSpace)] == [True, False]


def test_a_status_is_written_over_where_there_is_no_room_for_another(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        status_file = StatusFile(disk, run_config(2))
        summarised = Summarised([status_file.show])
        with status_file:
            deadline = time.monotonic() + 30
            while not (disk / "status.json").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            fill(disk)
            summarised(DiskSpace(str(disk), 0, 10**6))
            while not (found := json.loads((disk / "status.json").read_text()))["disk"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert found["disk"] == {"folder": str(disk), "free_bytes": 0, "needed_bytes": 10**6}
