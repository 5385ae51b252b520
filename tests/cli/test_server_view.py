"""What is shown of a server and its sites: the status file in each phase, the sites' list, the panel and the log."""

import fcntl
import io
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from fedlora.cli.run_view import RunView, advance, plain_lines, run_panel
from fedlora.cli.server_view import sites_table, status_lines
from fedlora.common.aggregation_report import AggregationReport
from fedlora.common.config import RunConfig
from fedlora.common.errors import FedloraError, RunError, StoreError
from fedlora.common.messages import Score
from fedlora.server.disk.recorded_rounds import recorded_rounds
from fedlora.server.disk.status_file import Status, StatusFile, read_status
from fedlora.server.identity.site_records import SiteCertificate, SiteRecord
from fedlora.server.record.events import (
    EvaluationStarted,
    Event,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    UpdateArrived,
    Waiting,
)
from fedlora.server.record.round_report import CODEC, ClientReport, HeldOutReport, RoundReport
from fedlora.server.record.running_summary import RunningSummary, Summarised, after_rounds, updated

NAMES = ("north", "south")
STARTED = RunStarted(NAMES, 10, 1, ())
DEADLINE_SECONDS = 120.0
NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)


def report(number: int = 1, *, metric: float = 0.75, error: float = 0.21) -> RoundReport:
    clients = {"north": ClientReport(50, 8, 0.5, None, None, {})}
    held_out = HeldOutReport(Score(20, 1.0, metric), {"north": Score(20, 1.0, metric)}, is_complete=True)
    errors = AggregationReport("lora_fair", error, error and 0.17, 0.01, {})
    return RoundReport(
        number, NAMES, clients, {"south": "late"}, errors, held_out, 2_000_000, 1500, {"training": 9.0, "storing": 1.0}
    )


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """Return a run's folder that a server holds."""
    with open(tmp_path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def status_after(
    folder: Path, *events: Event, phase: str, metric: str = "accuracy", known: RunningSummary | None = None
) -> Status:
    """Return the status when a server has heard these events, as another process reads it."""
    (folder / "manifest.json").write_text(json.dumps({"metric": metric}))
    deadline = time.monotonic() + DEADLINE_SECONDS
    seconds = 10 if known is None else 30
    (folder / "processes.json").write_text(json.dumps([{"began": "2025-03-01T12:00:00Z", "seconds": seconds}]))
    with StatusFile(folder, RunConfig(), known=known) as status_file:
        status_file.listening(8470)
        listener = Summarised([status_file.show], known=known)
        for event in events:
            listener(event)
        while True:
            assert time.monotonic() < deadline, f"it does not become {phase!r}"
            if (folder / "status.json").exists() and (found := read_status(folder))["phase"] == phase:
                return found
            time.sleep(0.02)


def lines(status: Status) -> list[str]:
    """Return the status in lines, without the process's number."""
    return [line.replace(f"process {status['pid']}", "process 1") for line in status_lines(status)]


def test_a_server_that_waits_says_for_what_and_who_is_there(held: Path) -> None:
    events = [SiteChanged("south", "not ready", "quiet_hours"), SiteChanged("north", "ready"), Waiting("1 of 2 sites")]
    assert lines(status_after(held, *events, phase="waiting for sites")) == [
        "digits: waiting for sites, before round 1 of 10, port 8470, process 1",
        "  waiting   1 of 2 sites",
        "  site      north: ready",
        "  site      south: not ready: quiet_hours",
    ]


def test_a_server_in_a_round_says_whose_updates_are_here(held: Path) -> None:
    answers = [UpdateArrived(1, "south", "norm_too_large", 0.5), UpdateArrived(1, "north", "", 0.5)]
    status = status_after(held, Waiting("x"), STARTED, RoundStarted(1, NAMES, ()), *answers, phase="training")
    assert lines(status) == [
        "digits: running, in round 1 of 10: training, port 8470, process 1",
        "  updates   1 of 2 accepted; refused south: norm_too_large",
    ]


def test_a_server_that_judges_says_so(held: Path) -> None:
    status = status_after(held, STARTED, RoundStarted(1, NAMES, ("north",)), EvaluationStarted(1), phase="evaluating")
    assert lines(status)[0] == "digits: running, in round 1 of 10: evaluating, port 8470, process 1"
    assert status["accepted"] == ["north"]


def test_after_a_round_there_is_what_came_of_it(held: Path) -> None:
    status = status_after(held, STARTED, RoundStarted(1, NAMES, ()), RoundEnded(report()), phase="between rounds")
    assert lines(status)[2:] == [
        "  so far    1 round in 10 s, 1 update accepted, 1 refused, 2.0 MB down, 1.5 kB up",
        "  accuracy  75.0 % after round 1",
        "  error     0.210 -> 0.170 of the average",
        "  last took training 9.0 s, storing 1.0 s",
    ]


def test_of_a_language_model_there_are_perplexity_and_the_best_round(held: Path) -> None:
    scores = [Score(20, loss, 0.3, 700) for loss in (3.0, 2.0, 2.5)]
    ended = []
    for number in (1, 2):
        clients = {"north": ClientReport(50, 8, 0.5, scores[number - 1], None, {})}
        held_out = HeldOutReport(scores[number], {}, is_complete=True)
        ended.append(replace(report(number), clients=clients, held_out=held_out))
    ended[1] = replace(ended[1], validation=scores[2], ended_early=True)
    status = status_after(held, STARTED, *map(RoundEnded, ended), phase="finished", metric="token accuracy")
    assert lines(status)[0].startswith("digits: running, after round 2 of 10: finished")
    assert lines(status)[2:5] == [
        "  token accuracy 30.0 %, perplexity 12.2 after round 2",
        "  best      round 1, by the validation loss 2.00",
        "  ended     early, after round 2: the validation loss had not become lower",
    ]


def test_a_run_that_goes_on_counts_what_was_before(held: Path) -> None:
    started = RunStarted(NAMES, 10, 3, (report(1), report(2)))
    status = status_after(held, started, phase="waiting for sites")
    assert (status["round"], status["last_round"], status["totals"]["rounds"]) == (3, 2, 2)  # type: ignore[index]


def test_a_server_that_waits_for_its_sites_again_tells_of_the_rounds_before(held: Path) -> None:
    (held / "rounds.jsonl").write_text(
        "".join(CODEC.dump(replace(report(number), aggregation=None)) + "\n" for number in (0, 1, 2)) + "{half"
    )
    known = after_rounds(recorded_rounds(held))
    status = status_after(held, SiteChanged("north", "ready"), phase="waiting for sites", known=known)
    assert lines(status)[:3] == [
        "digits: waiting for sites, after round 2 of 10, port 8470, process 1",
        "  site      north: ready",
        "  so far    2 rounds in 30 s, 3 updates accepted, 3 refused, 6.0 MB down, 4.5 kB up",
    ]


def test_a_status_is_json_also_with_numbers_that_json_does_not_have(held: Path) -> None:
    ended = RoundEnded(report(metric=math.nan, error=math.nan))
    status_after(held, STARTED, ended, phase="between rounds")
    content = (held / "status.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(content, parse_constant=refuse)
    assert (found["metric"], found["error_before"]) == (None, None)
    assert not any("accuracy" in line or "error" in line for line in lines(read_status(held)))


def test_a_server_that_has_ended_is_not_running_and_its_sites_are_gone(tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        events = [SiteChanged("north", "ready"), STARTED, RoundStarted(1, NAMES, ()), Waiting("something")]
        status_after(tmp_path, *events, phase="training")
    status = read_status(tmp_path)
    assert (status["state"], status["is_running"]) == ("stopped", False)
    when = datetime.fromisoformat(str(status["written"])).strftime("%Y-%m-%d %H:%M")
    assert lines(status) == [
        f"digits: stopped in round 1 of 10, {when} UTC",
        "  to go on  give the same start command again",
    ]


ENDED = RoundEnded(report(10))
EARLY = RoundEnded(replace(report(4), ended_early=True))


@pytest.mark.parametrize(
    ("events", "error", "state", "line"),
    [
        ((STARTED, ENDED), None, "finished", "digits: finished, 10 rounds, "),
        ((RunStarted(NAMES, 10, 11, (report(10),), is_over=True),), None, "finished", "digits: finished, 10 rounds, "),
        ((STARTED, EARLY), None, "ended early", "digits: ended early after round 4 of 10, "),
        ((STARTED, RoundEnded(report(3))), None, "stopped", "digits: stopped after round 3 of 10, "),
        ((STARTED, RoundStarted(3, NAMES, ())), RunError("no\nquorum"), "failed", "digits: failed in round 3 of 10, "),
        ((), StoreError("disk full"), "failed", "digits: failed before round 1 of 10, "),
    ],
)
def test_how_a_server_has_ended_is_told_apart(
    tmp_path: Path, events: tuple[Event, ...], error: Exception | None, state: str, line: str
) -> None:
    with suppress(FedloraError), StatusFile(tmp_path, RunConfig()) as status_file:
        listener = Summarised([status_file.show])
        for event in events:
            listener(event)
        if error is not None:
            raise error
    status = read_status(tmp_path)
    told = lines(status)
    assert (status["state"], told[0].startswith(line), told[0].endswith(" UTC")) == (state, True, True)
    assert ("  because   no quorum" in told) == (state == "failed" and bool(events))
    assert ("  to go on  give the same start command again" in told) == (state in ("failed", "stopped"))


KILLED = """
import os, signal, sys
from pathlib import Path
from fedlora.common.config import RunConfig
from fedlora.server.disk.status_file import StatusFile
from fedlora.server.record.events import RoundStarted, RunStarted
from fedlora.server.record.running_summary import Summarised

folder = Path(sys.argv[1])
with StatusFile(folder, RunConfig()) as status_file:
    listener = Summarised([status_file.show])
    listener(RunStarted(("north",), 10, 3, ()))
    listener(RoundStarted(3, ("north",), ()))
    while '"training"' not in (folder / "status.json").read_text() if (folder / "status.json").exists() else True:
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_that_was_killed_is_told_from_one_that_was_stopped(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == -signal.SIGKILL
    when = str(read_status(tmp_path)["written"])[:16].replace("T", " ")
    assert lines(read_status(tmp_path)) == [
        f"digits: killed in round 3 of 10, last heard of {when} UTC",
        "  to go on  give the same start command again",
    ]


def test_the_sites_are_listed_with_what_they_may_and_until_when() -> None:
    end = NOW + timedelta(days=90)
    records = [
        SiteRecord("north", ("tiny", "other"), "enrolled", (SiteCertificate("1", end),)),
        SiteRecord("south", ("tiny",), "invited", (), "hash", NOW + timedelta(hours=1)),
        SiteRecord("east", ("tiny",), "invited", (), "hash", NOW - timedelta(hours=1)),
        SiteRecord("[/red]west", ("tiny",), "revoked"),
    ]
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(sites_table(records, NOW))
    rows = [line.split() for line in capture.get().splitlines()]
    assert ["north", "enrolled", "tiny,", "other", "2027-05-30", "12:00", "UTC"] in rows
    assert ["south", "invited", "tiny", "2027-03-01", "13:00", "UTC"] in rows
    assert ["east", "invitation", "ended", "tiny", "2027-03-01", "11:00", "UTC"] in rows
    assert ["[/red]west", "revoked", "tiny"] in rows


def view_after(*events: Event) -> RunView:
    view = RunView("tiny", "accuracy")
    for event in events:
        view = advance(view, event, updated(view.summary, event), now=0.0)
    return view


def logged(*events: Event) -> list[str]:
    view, printed = RunView("tiny", "accuracy"), []
    for event in events:
        before, view = view, advance(view, event, updated(view.summary, event), now=0.0)
        printed += plain_lines(before, view, event)
    return printed


def panel(view: RunView, *, width: int = 90) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(run_panel(view, now=0.0, num_seconds=5.0, width=width))
    return capture.get()


def test_the_log_tells_of_sites_that_come_and_go_and_not_of_each_request() -> None:
    states = ["starting", "ready", "at work", "ready", "at work", "away", "starting", "ready"]
    assert logged(*(SiteChanged("north", state) for state in states)) == [
        "site north: starting",
        "site north: ready",
        "site north: away",
        "site north: starting",
        "site north: ready",
    ]
    assert logged(SiteChanged("north", "not ready", "paused")) == ["site north: not ready: paused"]


def test_the_log_tells_what_is_waited_for() -> None:
    assert logged(Waiting("0 of 2 sites are ready")) == ["waiting: 0 of 2 sites are ready"]


def test_the_panel_counts_the_sites_and_names_those_that_are_missing() -> None:
    changes = [
        SiteChanged("a", "ready"), SiteChanged("b", "at work"), SiteChanged("c", "ready"), SiteChanged("d", "away"),
        SiteChanged("e", "not ready", "quiet_hours"),
    ]  # fmt: skip
    text = panel(view_after(*changes, Waiting("3 of 5 sites are ready")))
    assert "2 ready, 1 at work, not ready: e (quiet_hours), away: d" in text
    assert "3 of 5 sites are ready" in text


def test_what_was_waited_for_is_gone_when_the_run_goes_on() -> None:
    waiting = Waiting("0 of 2 sites are ready")
    for goes_on in (STARTED, RoundStarted(1, NAMES, ())):
        assert view_after(waiting).summary.waiting_for == waiting.what
        assert view_after(waiting, goes_on).summary.waiting_for == ""


@pytest.mark.parametrize("width", [20, 40, 90])
def test_a_panel_with_many_sites_fits_the_terminal(width: int) -> None:
    changes = [SiteChanged(f"hospital_{number:03d}", "away") for number in range(100)]
    printed = panel(view_after(*changes, Waiting("sites " * 40), STARTED, RoundEnded(report())), width=width)
    assert len(printed.splitlines()) <= 14
    assert max(map(len, printed.splitlines())) <= width
