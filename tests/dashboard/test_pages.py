"""What the pages say of a run, a folder of runs, and an audit log."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "server")]

from report_pages import Page, finished, start
from shown_runs import CONFIG, append, shown, write_run

from fedlora.common.run_file import parse_run
from fedlora.server.disk.audit import AuditLog
from fedlora.server.disk.claim import Claim
from fedlora.server.disk.quarantine import set_aside
from fedlora.server.disk.status_file import StatusFile
from fedlora.server.record.events import Event, RoundStarted, RunStarted, SiteChanged, UpdateArrived
from fedlora.server.record.running_summary import RunningSummary, updated
from fedlora.server.run_queue.store import RunStore

REFUSED = {"serif": "not_finite: A of encoder.layer.0"}


def words(html: str) -> str:
    return Page(html).text.replace("\N{NO-BREAK SPACE}", " ")


def tell(status: StatusFile, *events: Event) -> None:
    summary = RunningSummary()
    for event in events:
        before, summary = summary, updated(summary, event)
        status.show(event, before, summary)


def test_a_runs_page_says_what_its_rounds_say(tmp_path: Path) -> None:
    write_run(tmp_path / "run", start(), finished(1), finished(2, refused=REFUSED))
    with shown(tmp_path / "run") as client:
        answer = client.get("/runs/")
    text = words(answer.text)
    assert answer.status == 200
    for said in (
        "clinics",
        "Accuracy on held-out examples rose from 10.0 % to 50.0 % in 2 of the 4 planned rounds.",
        "interrupted: round 2 of 4",
        "Accuracy by round",
        "Loss by round",
        "Accuracy by group and round",
        "Held-out accuracy by group, in numbers",
        "Error by layer and round",
        "1 update of the 4 asked for is not in any average",
        "not finite: A of encoder.layer.0",
        "adapters went to the clients",
    ):
        assert said in text
    plots = [attributes["data-plot"] for attributes in Page(answer.text).named("div") if "data-plot" in attributes]
    loss = next(plot for plot in map(json.loads, plots) if plot["title"] == "Loss by round")
    assert loss["x"] == [0, 1, 2]
    assert loss["panels"][0]["series"][0]["values"] == [None, 1.0, 1.0]


def test_a_folders_page_lists_its_runs_the_ones_at_work_first(tmp_path: Path) -> None:
    write_run(tmp_path / "queue" / "done", *(finished(number) if number else start() for number in range(5)))
    config = parse_run({"run": {"name": "at work"}})
    with Claim(tmp_path / "queue" / "second", config, resume=False):
        append(tmp_path / "queue" / "second", start())
        (tmp_path / "comparison").mkdir()
        (tmp_path / "comparison" / "comparison.json").write_text("{}")
        (tmp_path / "comparison" / "report.html").write_text("<p>methods</p>")
        (tmp_path / "no run").mkdir()
        with shown(tmp_path) as client:
            answer = client.get("/")
            links = [attributes["href"] for attributes in Page(answer.text).named("a")]
            assert links[1:] == ["/runs/queue/second", "/runs/queue/done", "/reports/comparison"]
            text = words(answer.text)
            assert "running: round 1 of 10" in text
            assert "finished accuracy 90.0 %" in text
            assert client.get("/reports/comparison").body == b"<p>methods</p>"
            assert client.get("/runs/queue/done").status == 200


def test_what_waits_at_a_store_is_listed_in_its_order_behind_its_runs(tmp_path: Path) -> None:
    store = RunStore.opened(tmp_path / "store")
    with shown(tmp_path) as client:
        assert "Waiting" not in words(client.get("/").text)
        for name in ("second", "first"):
            store.submit(parse_run({"run": {"name": name}, "data": {"labels": ["a", "b"]}}))
        write_run(store.run_folder("second"), start(), config=parse_run({"run": {"name": "second"}}))
        store.change(lambda queue: queue.with_state("second", "running"))
        store.submit(parse_run({"run": {"name": "third"}, "data": {"labels": ["a", "b"]}}))
        text = until(lambda: words(client.get("/").text), lambda said: "third" in said and "second" in said)
        waiting = text.partition("Waiting in store")[2]
        assert 0 < waiting.index("first submitted") < waiting.index("third submitted")
        assert "second" not in waiting
        (store.folder / "queue.json").write_text("{")
        assert "damaged" in until(lambda: words(client.get("/").text), lambda said: "damaged" in said)


def until(look: Callable[[], str], holds: Callable[[str], bool]) -> str:
    """Return what is seen once it holds; pages look at a folder once a second at most."""
    deadline = time.monotonic() + 60
    while not holds(seen := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen


def test_sites_stand_by_state_with_when_they_were_heard_of_and_why_they_were_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", start(), finished(1, refused=REFUSED))
    with Claim(run, CONFIG, resume=True):
        with StatusFile(run, CONFIG) as status:
            tell(
                status,
                SiteChanged("mnist", "at work"),
                SiteChanged("serif", "ready"),
                SiteChanged("sans", "not ready", "base_model"),
                RunStarted(("mnist", "serif"), 4, 2, (start(), finished(1, refused=REFUSED))),
                RoundStarted(2, ("mnist", "serif"), ()),
                UpdateArrived(2, "serif", "late", 0.5),
            )
        (run / "status.json").write_text(
            (run / "status.json").read_text().replace('"phase": "stopped"', '"phase": "training"')
        )
        with shown(run) as client:
            text = words(client.get("/runs/").text)
    heard = json.loads((run / "status.json").read_text())["sites"]["serif"]["heard"]
    assert "running: round 2 of 4" in text
    assert "3 sites: 1 not ready, 1 at work and 1 ready." in text
    assert f"serif ready {heard.replace('T', ' ')[:19]} refused: late not finite: A of encoder.layer.0" in text
    assert "not ready: base model" in text
    assert "Round 2: 0 of 2 updates accepted; refused: serif (late)." in text


def test_a_run_of_a_store_that_has_ended_is_submitted_again(tmp_path: Path) -> None:
    store = RunStore.opened(tmp_path / "store")
    alone = tmp_path / "alone"
    for run in (store.run_folder("clinics"), alone):
        with Claim(write_run(run), CONFIG, resume=True), StatusFile(run, CONFIG):
            pass
    with shown(tmp_path) as client:
        of_store = words(client.get(f"/runs/store/runs/{store.run_folder('clinics').name}").text)
        of_none = words(client.get("/runs/alone").text)
    assert "To go on, submit it again: fedlora runs submit RUN.toml --store DIR" in of_store
    assert "the same start command" not in of_store
    assert "To go on, give the same start command again." in of_none


@pytest.mark.parametrize(
    ("rounds", "ends_early", "said"),
    [(2, False, "interrupted: round 2 of 4"), (4, False, "finished"), (2, True, "ended early: round 2 of 4")],
)
def test_a_simulation_is_as_its_rounds_are(tmp_path: Path, rounds: int, ends_early: bool, said: str) -> None:
    reports = [finished(number, ended_early=ends_early and number == rounds) for number in range(1, rounds + 1)]
    with shown(write_run(tmp_path, start(), *reports)) as client:
        assert said in words(client.get("/runs/").text)


def test_the_audit_log_is_shown_in_pages_and_its_chain_is_checked(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    log = AuditLog(run)
    head = log.append(*({"event": "refused", "site": f"site-{number}", "reason": "norm"} for number in range(150)))
    with shown(run) as client:
        first, second = (words(client.get(f"/audit/?page={page}").text) for page in (1, 2))
        assert f"The chain holds: 151 entries, the last with the sha256 {head.sha256}." in first
        assert "Page 1 of 2" in first
        assert "site-149" in first
        assert "site-49 " in second
        assert "site-149" not in second
        for nonsense in ("0", "-1", "x", "99999999999"):
            assert client.get(f"/audit/?page={nonsense}").status == 200
        lines = (run / "audit.jsonl").read_text().splitlines()
        lines[2] = lines[2].replace("site-1", "site-9")
        (run / "audit.jsonl").write_text("\n".join(lines) + "\n")
        text = words(client.get("/audit/").text)
    assert "The chain is broken: line 4 does not hold" in text
    assert "The 3 entries before it hold" in text


def test_what_is_set_aside_is_listed_with_its_reason(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    set_aside(run / "quarantine", site="serif", round=2, reason="norm: 120 times the others", packed=b"tensors")
    with shown(run) as client:
        text = words(client.get("/runs/").text)
    assert "1 answer set aside in quarantine/." in text
    assert "serif norm: 120 times the others 2 7 B" in text


def test_a_run_of_a_foreign_method_is_shown_all_the_same(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    text = (run / "run.toml").read_text()
    assert '"lora_fair"' in text
    (run / "run.toml").write_text(text.replace('"lora_fair"', '"of_somebody_else"'))
    with shown(run) as client:
        assert "of_somebody_else" in words(client.get("/runs/").text)


def test_a_folder_that_comes_later_is_found(tmp_path: Path) -> None:
    with shown(tmp_path / "later") as client:
        assert "There is no run in this folder yet." in words(client.get("/").text)
        write_run(tmp_path / "later")
        assert client.get("/").status == 307


def test_a_report_opens_without_scripts(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "report.html").write_text("<h1>report</h1>")
    with shown(run) as client:
        answer = client.get("/reports/")
    assert answer.text == "<h1>report</h1>"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "sandbox" in answer.headers["content-security-policy"]
