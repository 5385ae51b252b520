"""The audit log: who came, what counted and what was refused, in a chain that shows what was changed in it."""

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from stub_runs import run_config, served
from stub_site import StubSite

from fedlora.cli.server import audit
from fedlora.cli.server_view import audit_lines
from fedlora.common.errors import StoreError
from fedlora.common.run_folder import AUDIT_FILE
from fedlora.server.disk.audit import AuditLog, read_audit, run_id_in
from fedlora.server.disk.audited import Audited
from fedlora.server.record.events import AdapterFetched, CallsRefused, Enrolled, RoundEnded, SiteChanged, ignore
from fedlora.server.record.round_report import ClientReport, RoundReport
from fedlora.server.rounds.completion import weigh
from fedlora.v1 import exchange_pb2, messages_pb2


def entries_of(folder: Path) -> list[dict[str, object]]:
    found = read_audit(folder)
    assert found.fault == ""
    return [dict(entry) for entry in found.entries]


def test_a_run_tells_who_came_what_counted_and_what_did_not(tmp_path: Path) -> None:
    folder, sites = tmp_path / "run", [StubSite(name, tmp_path / name) for name in ("anna", "bert")]
    config = run_config(2, federation={"rounds": 2})
    AuditLog(folder.parent)  # Nothing is made by looking.
    served(config, folder, sites)
    found = entries_of(folder)
    kinds = [entry["event"] for entry in found]
    assert kinds[:2] == ["begun", "started"]
    assert kinds[-1] == "stopped"
    assert {str(entry["site"]) for entry in found if entry["event"] == "joined"} == {"anna", "bert"}
    counted = [entry for entry in found if entry["event"] == "counted"]
    assert [(entry["round"], entry["site"], entry["num_examples"], entry["share"]) for entry in counted] == [
        (1, "anna", 10, 0.5), (1, "bert", 10, 0.5), (2, "anna", 10, 0.5), (2, "bert", 10, 0.5),
    ]  # fmt: skip
    assert all(len(str(entry["wire_sha256"])) == 64 for entry in counted)
    assert [entry["round"] for entry in found if entry["event"] == "round"] == [0, 1, 2]

    # Where the log ends, and the run's id, are told elsewhere too.
    manifest = json.loads((folder / "manifest.json").read_text())
    head = AuditLog(folder).head()
    assert manifest["audit"] == {"lines": len(found), "head": head.sha256}
    assert manifest["run_id"] == run_id_in(folder) == found[0]["run_id"]

    # Of a round that a crash kept from the log, the next start tells.
    lines = (folder / AUDIT_FILE).read_bytes().splitlines(keepends=True)
    until = next(number for number, entry in enumerate(found) if entry["event"] == "counted" and entry["round"] == 2)
    (folder / AUDIT_FILE).write_bytes(b"".join(lines[:until]) + lines[until][:40])
    served(config, folder, sites)
    again = entries_of(folder)
    assert [entry["round"] for entry in again if entry["event"] == "round"] == [0, 1, 2]
    (cut,) = [entry for entry in again if entry["event"] == "cut"]
    assert cut["cut_bytes"] == 40


CHANGES: dict[str, Callable[[list[bytes]], None]] = {
    "a word": lambda lines: lines.__setitem__(2, lines[2].replace(b"site-1", b"site-9")),
    "a line less": lambda lines: lines.__delitem__(2),
    "a line more": lambda lines: lines.insert(2, lines[2]),
    "another order": lambda lines: lines.__setitem__(slice(2, 4), [lines[3], lines[2]]),
    "no entry": lambda lines: lines.__setitem__(2, b"\x00\xff\n"),
    "cut in the middle": lambda lines: lines.__setitem__(2, lines[2][:20] + b"\n"),
    "no begin": lambda lines: lines.__delitem__(0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_changed_before_the_end_shows(tmp_path: Path, change: Callable[[list[bytes]], None]) -> None:
    log = AuditLog(tmp_path)
    for number in range(5):
        log.append({"event": "joined", "site": f"site-{number}"})
    lines = (tmp_path / AUDIT_FILE).read_bytes().splitlines(keepends=True)
    change(lines)
    (tmp_path / AUDIT_FILE).write_bytes(b"".join(lines))
    found = read_audit(tmp_path)
    at = 0 if lines[0].find(b"begun") < 0 else 2
    # A changed word is found at the line behind it.
    assert len(found.entries) in (at, at + 1)
    assert found.fault.startswith(f"line {len(found.entries) + 1} does not hold: ")
    # What is written later does not mend it.
    AuditLog(tmp_path).append({"event": "joined", "site": "later"})
    assert read_audit(tmp_path).fault == found.fault


@pytest.mark.parametrize("num_bytes", [1, 30, None])
def test_a_line_that_a_crash_cut_off_stays_and_is_spoken_of(tmp_path: Path, num_bytes: int | None) -> None:
    AuditLog(tmp_path).append({"event": "joined", "site": "anna"})
    path = tmp_path / AUDIT_FILE
    whole = path.read_bytes()
    *before, last = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(before) + last[: num_bytes or len(last) - 1])
    assert read_audit(tmp_path).cut_bytes == (num_bytes or len(last) - 1)
    assert any("cut off" in line for line in audit_lines(read_audit(tmp_path)))
    AuditLog(tmp_path).append({"event": "left", "site": "anna"})
    found = read_audit(tmp_path)
    assert (found.fault, found.cut_bytes) == ("", 0)
    cut = [entry["cut_bytes"] for entry in found.entries if entry["event"] == "cut"]
    # Where only the line feed is missing, nothing of it is.
    assert cut == ([] if num_bytes is None else [num_bytes])
    if num_bytes is not None:
        # Neither what is left of it nor its size can be changed.
        path.write_bytes(path.read_bytes().replace(last[:num_bytes] + b"\n", b"x" + last[1:num_bytes] + b"\n"))
        assert "cut off" in read_audit(tmp_path).fault


def test_a_log_whose_first_line_was_cut_off_begins_behind_it(tmp_path: Path) -> None:
    (tmp_path / AUDIT_FILE).write_bytes(b'{"line": 1, "at"')
    AuditLog(tmp_path).append({"event": "invited", "site": "anna"})
    found = read_audit(tmp_path)
    assert found.fault == ""
    assert [(entry["event"], entry["line"]) for entry in found.entries] == [("begun", 2), ("invited", 3)]
    assert run_id_in(tmp_path) == found.entries[0]["run_id"]


def _append(folder: Path, name: str) -> None:
    log = AuditLog(folder)
    for number in range(20):
        log.append({"event": "invited", "site": f"{name}-{number}"})


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    processes = [multiprocessing.get_context("fork").Process(target=_append, args=(tmp_path, n)) for n in "abc"]
    own = AuditLog(tmp_path)
    for process in processes:
        process.start()
    for number in range(20):
        own.append({"event": "joined", "site": f"own-{number}"})
    for process in processes:
        process.join()
    found = read_audit(tmp_path)
    assert found.fault == ""
    assert len(found.entries) == 1 + 4 * 20
    assert own.head() == found.head


def test_a_flood_of_refusals_does_not_fill_the_disk(tmp_path: Path) -> None:
    now = 0.0
    audited = Audited(AuditLog(tmp_path), ignore, clock=lambda: now)
    for number in range(3_000):
        audited(CallsRefused("ticket", "mallory", "192.0.2.1", 2))
        audited(SiteChanged("mallory", "starting" if number % 2 else "away"))
    now = 4_000.0
    audited(CallsRefused("ticket", "mallory", "192.0.2.1", 1))
    audited.close()
    found = entries_of(tmp_path)
    refused = [entry for entry in found if entry["event"] == "refused"]
    counted = {str(entry["of"]): entry["num"] for entry in found if entry["event"] == "counted only"}
    assert len(found) < 100
    assert len(refused) == 21
    assert counted["refused"] == 2 * 3_000 - 2 * 20
    assert counted["joined"] == 1_500 - 20


def test_a_refused_upload_and_its_digest_stand_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The upload of a wrong digest is refused again and again: one line, and then their number."""
    import grpc
    from open_port import exchange_of, named

    def begin(address: str) -> None:
        with exchange_of(address) as exchange:
            for _ in range(30):
                blob = messages_pb2.Blob(sha256=bytes(32), size_bytes=1)
                request = exchange_pb2.QueryWriteStatusRequest(ticket=b"forged\x1b[2J", blob=blob)
                with pytest.raises(grpc.RpcError):
                    exchange.QueryWriteStatus(request, metadata=named("mallory"))

    sites = [StubSite(name, tmp_path / name) for name in ("anna", "bert")]
    with caplog.at_level("WARNING"):
        served(run_config(2), tmp_path / "run", sites, opened=begin)
    refused = [entry for entry in entries_of(tmp_path / "run") if entry["event"] == "refused"]
    assert [(entry["reason"], entry["site"], entry["address"], entry["num"]) for entry in refused] == [
        ("ticket", "mallory", "127.0.0.1", 1), ("ticket", "mallory", "127.0.0.1", 29),
    ]  # fmt: skip
    lines = [record.getMessage() for record in caplog.records if "refused mallory" in record.getMessage()]
    assert lines == ["refused mallory at 127.0.0.1: ticket", "refused mallory at 127.0.0.1: ticket, 29 times more"]


def test_the_command_checks_a_log_and_names_the_first_line_that_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audited = Audited(AuditLog(tmp_path), ignore)
    audited(Enrolled("anna", "192.0.2.1", is_renewal=False))
    audited(Enrolled("anna", "192.0.2.1", is_renewal=True))
    audited(AdapterFetched("anna", "digits-v0001"))
    audit(tmp_path, as_json=False)
    assert capsys.readouterr().out.startswith("4 entries hold\n  of them   1 begun, 1 enrolled, 1 renewed, 1 fetched\n")
    audit(tmp_path, as_json=True)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == entries_of(tmp_path)
    path = tmp_path / AUDIT_FILE
    path.write_text(path.read_text().replace('"enrolled"', '"invited"'))
    with pytest.raises(StoreError, match="line 3 does not hold: it stands behind a line with the sha256"):
        audit(tmp_path, as_json=False)
    assert "2 entries hold, and those behind them do not" in capsys.readouterr().out


def test_the_shares_in_the_log_are_those_that_counted(tmp_path: Path) -> None:
    audited = Audited(AuditLog(tmp_path), ignore)
    sizes = {"anna": 10, "bert": 10, "mallory": 1_000_000}
    shares = weigh(sizes, weighting="examples").shares
    parts = {name: ClientReport(size, 1, 1.0, None, None, {}, share=shares[name]) for name, size in sizes.items()}
    audited(RoundEnded(RoundReport(1, tuple(sizes), parts, {}, None, None, 0, 0, {}, "0" * 64)))
    logged = {entry["site"]: entry["share"] for entry in entries_of(tmp_path) if entry["event"] == "counted"}
    assert logged == pytest.approx({"anna": 10 / 120, "bert": 10 / 120, "mallory": 100 / 120})
