"""Whatever lies in a folder is shown as text, or passed over: a page comes, and says what is missing."""

import json
import os
import sys
from datetime import UTC, datetime
from math import inf, nan
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

import pytest
from report_pages import Page, aggregation, client, finished, held_out, start
from shown_runs import CONFIG, append, shown, write_run

from fedlora.common.run_file import parse_run
from fedlora.dashboard.known_run import KnownRun
from fedlora.dashboard.now import state_words
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.dashboard.rounds_tail import RoundsTail, last_round
from fedlora.server.disk.audit import AuditLog
from fedlora.server.disk.quarantine import set_aside
from fedlora.server.disk.status_file import StatusFile

SCRIPT = "<script>alert(1)</script><img src=x onerror=a()>\"'&{{7*7}}"
TURNED = "\u202egnp.exe\x1b[2J\n"


def test_a_script_is_text_wherever_it_stands(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        start({SCRIPT: 0.1, "b": 0.2}),
        finished(
            1,
            {SCRIPT: client(), TURNED: client()},
            refused={SCRIPT + "2": SCRIPT},
            held_out=held_out({SCRIPT: 0.3, "b": 0.4}),
            aggregation=aggregation(paths=(SCRIPT, "b")),
            seconds={SCRIPT: 1.0},
        ),
        config=parse_run({"run": {"name": "<img src=x onerror=alert(1)>"}}),
    )
    (run / "manifest.json").write_text(json.dumps({"metric": SCRIPT}))
    standing = {"state": SCRIPT, "detail": SCRIPT, "heard": SCRIPT}
    status = {
        "run": SCRIPT, "pid": 1, "port": 1, "phase": SCRIPT, "written": SCRIPT, "failure": SCRIPT, "round": 1,
        "waiting_for": SCRIPT, "num_rounds": 2, "sites": {SCRIPT: standing}, "cohort": [SCRIPT], "accepted": [],
        "refused": {SCRIPT: SCRIPT}, "last_round": 0, "metric": None, "error_before": None, "error_after": None,
        "seconds": {}, "totals": {},
    }  # fmt: skip
    (run / "status.json").write_text(json.dumps(status))
    set_aside(run / "quarantine", site=SCRIPT, round=1, reason=SCRIPT, packed=b"x")
    AuditLog(run).append({"event": SCRIPT, "site": SCRIPT, SCRIPT: SCRIPT})
    with shown(tmp_path) as asked:
        for path in ("/", "/runs/run", "/audit/run", "/parts/run?part=rounds", f"/runs/{'%3Cscript%3E'}"):
            answer = asked.get(path, Accept="text/html")
            assert b"<script>alert" not in answer.body, path
            assert b"<img" not in answer.body, path
            assert b"49" not in answer.body or b"{{7*7}}" in answer.body, path
            assert not {"\x1b", "\u202e"} & set(answer.text), path
            page = Page(answer.text) if path != "/parts/run?part=rounds" else Page(f"<div>{answer.text}</div>")
            assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")], path
        assert "alert(1)" in Page(asked.get("/runs/run").text).text


def test_numbers_that_are_none_are_shown(tmp_path: Path) -> None:
    spoilt = {"mnist": client(nan, before=nan, after=inf), "serif": client(inf)}
    run = write_run(
        tmp_path,
        start({"mnist": nan, "serif": inf}),
        finished(1, spoilt, aggregation=aggregation(nan, inf), held_out=held_out({"mnist": nan, "serif": 0.1})),
        finished(2, spoilt, aggregation=aggregation(inf, nan)),
    )
    with shown(run) as asked:
        answer = asked.get("/runs/")
    page = Page(answer.text)
    plots = [found["data-plot"] for found in page.named("div") if "data-plot" in found]
    for plot in plots:
        json.loads(plot, parse_constant=pytest.fail)
    assert len(plots) > 3
    assert "not finite" in page.text
    assert "cannot be shown" not in page.text


def test_lines_that_are_no_rounds_are_counted_and_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with open(run / "rounds.jsonl", "ab") as file:
        file.write(b'{"round": 3\n\xff\xfe\n[]\nnull\n' + b"[" * 100_000 + b"\n" + b'"' + b"x" * (17 << 20) + b'"\n')
    append(run, finished(3))
    with open(run / "rounds.jsonl", "ab") as file:
        file.write(b'{"round": 4, "coh')
    with shown(run) as asked:
        text = Page(asked.get("/runs/").text).text
    assert "rounds.jsonl: 6 lines are no rounds, and left out." in text
    assert "in 3 of the 4 planned rounds" in text


@pytest.mark.parametrize("content", ["", "{", "null", "[]", '{"run": 1}', "\udcff", "[" * 100_000, "x" * (17 << 20)])
def test_a_file_of_something_else_is_no_reason_to_show_nothing(tmp_path: Path, content: str) -> None:
    names = ("status.json", "manifest.json", "sites.json", "processes.json", "run.toml")
    for name in names:
        run = write_run(tmp_path / name.partition(".")[0])
        (run / name).write_bytes(content.encode(errors="surrogateescape"))
    with shown(tmp_path) as asked:
        assert asked.get("/").text.count('href="/runs/') == len(names)
        for name in names:
            text = Page(asked.get(f"/runs/{name.partition('.')[0]}").text).text
            assert "Loss by round" in text, name
            assert "cannot be shown" not in text, name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.toml", "a = " + "[" * 100_000),
        ("run.toml", "run.name." + ".".join("a" * 10_000) + " = 1"),
        ("processes.json", '[{"began": "9999-12-31T00:00:00Z", "seconds": 1e9}]'),
        ("processes.json", '[{"began": "0001-01-01T00:00:00+14:00", "seconds": 1}]'),
        ("processes.json", '[{"began": "2025-01-01T00:00:00", "seconds": 1}]'),
        ("status.json", "9999-12-31T23:59:59-14:00"),
    ],
    ids=[
        "lists in lists",
        "tables in tables",
        "after all time",
        "before all time",
        "no zone",
        "written after all time",
    ],
)
def test_a_run_of_odd_times_or_nesting_is_listed_with_the_others(tmp_path: Path, name: str, content: str) -> None:
    odd, other = write_run(tmp_path / "odd"), write_run(tmp_path / "other")
    if name == "status.json":
        with StatusFile(odd, CONFIG):
            pass
        content = json.dumps(json.loads((odd / name).read_text()) | {"written": content})
    (odd / name).write_text(content)
    with shown(tmp_path) as asked:
        listed = asked.get("/").text
        assert listed.count('href="/runs/') == 2
        assert "cannot be read" not in listed
        for run in (odd, other):
            assert "Loss by round" in Page(asked.get(f"/runs/{run.name}").text).text


def test_a_run_whose_row_cannot_be_made_says_so_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fault is put in by hand: none is known that a folder can cause."""
    for name in ("odd", "other"):
        write_run(tmp_path / name)

    def fails_for_odd(run: KnownRun) -> str:
        if run.changed == odd_changed:
            raise RuntimeError("a bug")
        return state_words(run)

    os.utime(tmp_path / "odd" / "rounds.jsonl", (1e9, 1e9))
    odd_changed = datetime.fromtimestamp(1e9, UTC)
    monkeypatch.setattr("fedlora.dashboard.run_list.state_words", fails_for_odd)
    with shown(tmp_path) as asked:
        text = Page(asked.get("/").text).text
    assert "odd cannot be read; the log of this command says why" in text
    assert "interrupted: round 2 of 4" in text
    assert f"{tmp_path / 'odd'}: its row in the list of runs cannot be made" in caplog.text


def test_a_published_folder_of_something_else_is_not_offered(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    for name, said in (("a-v0001", "{"), ("a-v0002", '{"name": "elsewhere"}'), ("a-v9" + "9" * 40, "")):
        (run / "published" / name).mkdir(parents=True)
        (run / "published" / name / "adapter.json").write_text(said)
        (run / "published" / name / "adapter_model.safetensors").write_bytes(b"x")
    with shown(run) as asked:
        assert "There is none yet" in Page(asked.get("/runs/").text).text
        assert asked.get("/adapters/?name=a-v0001").status == 404


def test_folders_of_odd_names_are_found_under_them(tmp_path: Path) -> None:
    for name in ("größe", "a b", "50%2F", "<b>", "a?b#c", "…", "a\\b"):
        write_run(tmp_path / name)
    (tmp_path / "line\nfeed").mkdir()
    with shown(tmp_path) as asked:
        page = Page(asked.get("/").text)
        links = [found["href"] for found in page.named("a") if found["href"].startswith("/runs/")]
        assert len(links) == 7
        for link in links:
            assert asked.get(link).status == 200, link


def test_a_page_of_ten_thousand_folders_comes_and_says_that_there_are_more(tmp_path: Path) -> None:
    for number in range(2_100):
        (tmp_path / f"{number:05d}").mkdir()
    write_run(tmp_path / "00000" / "run")
    with shown(tmp_path) as asked:
        text = Page(asked.get("/").text).text
    assert "There are more folders than this page looks into" in text
    assert "clinics" in text


def test_a_round_that_is_done_again_takes_the_place_of_what_was_behind_it(tmp_path: Path) -> None:
    tail = RoundsTail(PlainFolder(write_run(tmp_path)))
    tail.catch_up()
    append(tmp_path, finished(3), finished(1, bytes_up=7))
    tail.catch_up()
    assert [report.round for report in tail.reports] == [0, 1]
    assert tail.reports[1].bytes_up == 7


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    write_run(tmp_path, start(), finished(1, bytes_up=5), finished(2))
    tail = RoundsTail(PlainFolder(tmp_path))
    tail.catch_up()
    for is_same_file in (False, True):
        path = tmp_path / "rounds.jsonl"
        if not is_same_file:
            path.unlink()
        else:
            path.write_text("")
        append(tmp_path, start(), *(finished(number, bytes_up=9) for number in range(1, 5)))
        tail.catch_up()
        assert [report.bytes_up for report in tail.reports] == [0, 9, 9, 9, 9]
        append(tmp_path, finished(5))
        tail.catch_up()
        assert len(tail.reports) == 6


def test_a_line_is_taken_once_its_end_is_there(tmp_path: Path) -> None:
    write_run(tmp_path)
    tail = RoundsTail(PlainFolder(tmp_path))
    path = tmp_path / "rounds.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    tail.catch_up()
    assert len(tail.reports) == 2
    assert last_round(PlainFolder(tmp_path)) == tail.reports[-1]
    with open(path, "ab") as file:
        file.write(b"\n")
    tail.catch_up()
    assert [report.round for report in tail.reports] == [0, 1, 2]
    assert last_round(PlainFolder(tmp_path)) == tail.reports[-1]
    assert tail.num_damaged == 0
