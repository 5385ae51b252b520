"""What a terminal shows of a run: the panel, the plain lines, the outcome."""

import contextlib
import io
import math
import re
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedlora.cli.live import print_outcome, progress_view
from fedlora.cli.run_view import RunView, advance, curve, run_panel, seconds_left
from fedlora.common.aggregation_report import AggregationReport
from fedlora.common.messages import Generated, Score
from fedlora.server.record.events import (
    EvaluationStarted,
    Event,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    UpdateArrived,
)
from fedlora.server.record.round_report import ClientReport, HeldOutReport, RoundReport, Share
from fedlora.server.record.running_summary import Summarised, updated

CLIENTS = ("mnist", "serif")
TITLES = {"title": "digits", "metric_name": "accuracy"}
STARTED = RunStarted(CLIENTS, 2, 0, ())
LONG_FOLDER = Path("runs/a-long-name-for-a-folder/that-must-not-be-broken/across-two-lines/digits")


def report(number: int, *, refused: str = "", clients: tuple[str, ...] = CLIENTS) -> RoundReport:
    """Return a round's report; the accuracy grows by 20 points a round, a round takes 10 s."""
    groups = {name: Score(100, 1.0, 0.1 + 0.2 * number) for name in clients}
    held_out = HeldOutReport(Score(200, 1.0, 0.1 + 0.2 * number), groups, is_complete=True)
    if number == 0:
        return RoundReport(0, (), {}, {}, None, held_out, 0, 0, {"evaluation": 1.0})
    accepted = {name: ClientReport(50, 8, 2 / number, None, None, {}) for name in clients if name != refused}
    reasons = {refused: "norm_too_large: 8_12 times the median"} if refused else {}
    errors = AggregationReport("lora_fair", 0.21, 0.17, 0.01, {})
    return RoundReport(
        number, clients, accepted, reasons, errors, held_out, 10, 10, {"training": 9.0, "evaluation": 1.0}
    )


def whole_run() -> list[Event]:
    events: list[Event] = [STARTED, EvaluationStarted(0), RoundEnded(report(0))]
    for number in (1, 2):
        events += [RoundStarted(number, CLIENTS, ()), *(UpdateArrived(number, name, "", 1.0) for name in CLIENTS)]
        events += [EvaluationStarted(number), RoundEnded(report(number))]
    return events


def view_after(events: Iterable[Event], *, now: float = 0.0) -> RunView:
    view = RunView("digits", "accuracy")
    for event in events:
        view = advance(view, event, updated(view.summary, event), now=now)
    return view


def panel_text(view: RunView, *, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(run_panel(view, now=0.0, num_seconds=5.0, width=width))
    return capture.get()


def terminal(file: io.StringIO) -> Console:
    return Console(file=file, force_terminal=True, width=80, height=24, color_system=None, _environ={"TERM": "xterm"})


def logged(events: Iterable[Event]) -> list[str]:
    file = io.StringIO()
    with progress_view(**TITLES, console=Console(file=file, width=40)) as picture:
        listener = Summarised([picture])
        for event in events:
            listener(event)
    return file.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_for_the_start_and_for_each_round() -> None:
    assert logged(whole_run()) == [
        "digits: 2 clients, 2 rounds",
        "start      accuracy 10.0 %  1.0 s",
        "round 1/2  accuracy 30.0 %  loss 2.00  error of the average 0.210 -> 0.170  10 s",
        "round 2/2  accuracy 50.0 %  loss 1.00  error of the average 0.210 -> 0.170  10 s",
    ]


def test_a_site_that_comes_and_goes_without_end_fills_no_log() -> None:
    flutter = [SiteChanged("flutter", state) for _ in range(1_000) for state in ("starting", "away")]
    lines = logged([*flutter, SiteChanged("calm", "starting")])
    assert lines.count("site flutter: away") == 10
    assert lines[20:] == ["site calm: starting"]


def test_a_client_whose_weight_was_capped_is_named_with_both_weights() -> None:
    capped = report(1)
    parts = {**capped.clients, "serif": replace(capped.clients["serif"], share=Share(0.9, 0.5))}
    capped = replace(capped, clients=parts)
    events = [*whole_run()[:-4], RoundEnded(capped)]
    assert "round 1/2  capped serif: 50 % in place of 90 %" in logged([STARTED, RoundEnded(capped)])
    assert "serif: 50 % in place of 90 %" in panel_text(view_after(events))


def language_report(number: int, *, loss: float, **changes: Any) -> RoundReport:
    """Return a round of a language model whose adapter has `loss` per token on held-out and validation examples."""
    score = Score(100, loss, 1 / loss, 4000)
    part = ClientReport(50, 8, loss, Score(20, loss + 1, 0.5, 800), Score(20, loss, 0.5, 800), {}, num_tokens=1000)
    clients = {} if number == 0 else dict.fromkeys(CLIENTS, part)
    return replace(report(number), held_out=HeldOutReport(score, {}, True), clients=clients, **changes)


def language_run() -> tuple[RoundReport, ...]:
    """Return a run of three rounds whose second adapter is the best."""
    last = {"validation": Score(40, 3.5, 0.5, 1600), "ended_early": True}
    return (
        language_report(0, loss=4.0),
        language_report(1, loss=3.0),
        language_report(2, loss=1.5),
        language_report(3, loss=2.0, **last),
    )


def test_a_language_model_has_its_perplexity_in_every_line() -> None:
    start, *rounds = language_run()
    lines = logged([RunStarted(CLIENTS, 9, 0, ()), *map(RoundEnded, (start, *rounds))])
    assert lines[1].startswith("start      accuracy 25.0 %  perplexity 54.6  1.0 s")
    assert "perplexity 7.39  loss 2.00" in lines[4]
    assert "ended early" in lines[4]


def test_panel_of_a_language_model_tells_perplexity_and_the_best_round() -> None:
    text = panel_text(view_after([RunStarted(CLIENTS, 9, 0, ()), *map(RoundEnded, language_run())]))
    assert re.search(r"perplexity +7\.39 .* from 54\.6", text)
    assert re.search(r"validation loss +3\.50 .* best after round 1", text)
    assert "ended early after round 3 of 9" in text


def test_the_metric_is_named_as_soon_as_the_clients_are_known() -> None:
    file = io.StringIO()
    with progress_view(title="t", metric_name=lambda: "f1", console=Console(file=file, width=40)) as picture:
        listener = Summarised([picture])
        for event in whole_run()[:3]:
            listener(event)
    assert "start      f1 0.100" in file.getvalue()


def test_a_refusal_is_logged_once_with_its_reason() -> None:
    reason = "norm_too_large: 8_12 times the median"
    answers = [UpdateArrived(1, "mnist", "", 1.0), UpdateArrived(1, "serif", reason, 1.0)]
    lines = logged([STARTED, RoundStarted(1, CLIENTS, ()), *answers, RoundEnded(report(1, refused="serif"))])
    assert lines[1] == "round 1/2  refused serif: norm too large: 8_12 times the median"
    assert len(lines) == 3
    assert "1 of 2 updates" in lines[2]


def test_a_client_that_never_answered_is_logged_when_the_round_ends() -> None:
    lines = logged([STARTED, RoundStarted(1, CLIENTS, ()), RoundEnded(report(1, refused="serif"))])
    assert lines[1].startswith("round 1/2  refused serif")


def test_a_resumed_run_says_where_it_goes_on() -> None:
    lines = logged([RunStarted(CLIENTS, 2, 2, (report(0), report(1)))])
    assert lines[0] == "digits: 2 clients, 2 rounds, going on with round 2"
    assert lines[1].startswith("round 1/2  accuracy 30.0 %")


def test_a_run_resumed_after_its_end_is_finished() -> None:
    started = RunStarted(CLIENTS, 2, 3, (report(0), report(1), report(2)), is_over=True)
    assert view_after([started]).summary.phase == "finished"
    assert logged([started])[0].endswith("all finished before")


def test_markup_in_names_is_text() -> None:
    started = RunStarted(("[red]a[/red]",), 2, 0, ())
    lines = logged([started, UpdateArrived(1, "[red]a[/red]", "[bold]x", math.nan)])
    assert lines[1] == "round 1/2  refused [red]a[/red]: [bold]x"
    assert "[red]a[/red] in round 1: [bold]x" in panel_text(
        view_after([started, UpdateArrived(1, "[red]a[/red]", "[bold]x", 1.0)])
    )


def test_panel_tells_who_is_at_work_and_what_the_last_round_brought() -> None:
    text = panel_text(view_after([*whole_run()[:8], RoundStarted(2, CLIENTS, ("mnist",))]))
    assert "round 2 of 2" in text
    assert "30.0 %   ▁█  from 10.0 %" in text
    assert "0.210 → 0.170" in text
    assert "1 of 2 clients done; at work: serif" in text


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_panel_of_a_large_run_fits_the_terminal(width: int) -> None:
    names = tuple(f"hospital_{number:03d}" for number in range(100))
    rounds = tuple(report(number, refused=names[3], clients=names) for number in range(100))
    view = view_after([RunStarted(names, 300, 100, rounds), RoundStarted(100, names, ())])
    lines = panel_text(view, width=width).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= width


def test_phases_follow_each_other() -> None:
    phases = [view_after(whole_run()[:count]).summary.phase for count in range(1, 9)]
    assert phases == [
        "starting",
        "evaluating",
        "between rounds",
        "training",
        "training",
        "averaging",
        "evaluating",
        "between rounds",
    ]
    assert view_after(whole_run()).summary.phase == "finished"


def test_time_left_is_that_of_the_rounds_to_come() -> None:
    view = view_after([RunStarted(CLIENTS, 5, 2, (report(0), report(1))), RoundStarted(2, CLIENTS, ())], now=100.0)
    assert seconds_left(view, now=103.0) == pytest.approx(4 * 10.0 - 3.0)
    assert seconds_left(view, now=1000.0) == 0
    assert math.isnan(seconds_left(view_after([STARTED]), now=0.0))


def test_curve_spans_its_values_and_leaves_gaps() -> None:
    assert curve([0.0, 0.5, 1.0]) == "▁▅█"
    assert curve([1.0, math.nan, 2.0]) == "▁ █"
    assert curve([1.0, 1.0]) == "▁▁"
    assert curve([1.0]) == ""
    assert len(curve([float(value) for value in range(100)])) == 24


def test_final_state_stays_on_the_terminal() -> None:
    file = io.StringIO()
    with progress_view(**TITLES, console=terminal(file)) as picture:
        listener = Summarised([picture])
        threads = [threading.Thread(target=listener, args=(event,)) for event in whole_run()]
        for thread in threads:
            thread.start()
            thread.join()
    last = file.getvalue().rpartition("╭")[2]
    assert "2 rounds finished" in last
    assert "50.0 %" in last


def test_interrupted_run_is_shown_as_stopped() -> None:
    file = io.StringIO()
    with contextlib.suppress(KeyboardInterrupt), progress_view(**TITLES, console=terminal(file)) as picture:
        listener = Summarised([picture])
        for event in whole_run()[:5]:
            listener(event)
        raise KeyboardInterrupt
    assert "stopped in round 1 of 2" in file.getvalue().rpartition("╭")[2]


def outcome(*reports: RoundReport, out_dir: Path = LONG_FOLDER) -> str:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        print_outcome(
            console,
            reports=reports,
            metric_name="accuracy",
            out_dir=out_dir,
            load_code='trained = load_trained("[red]x")\n',
            worked=75.0,
        )
    return capture.get()


def test_outcome_shows_groups_before_and_after_and_how_to_go_on() -> None:
    text = outcome(report(0), report(1), report(2, refused="serif"))
    assert re.search(r"^mnist +100 +10.0 % +50.0 % +\+40.0$", text, flags=re.MULTILINE)
    assert re.search(r"^all examples +200 +10.0 % +50.0 % +\+40.0$", text, flags=re.MULTILINE)
    assert "2 rounds in 75 s" in text
    assert "1 update;" in text
    assert "across-two-lines/digits/report.html" in text
    assert text.endswith('\n  trained = load_trained("[red]x")\n')


def test_outcome_of_a_language_model_has_perplexity_answers_and_the_best_round() -> None:
    start, first, second, last = language_run()
    answered = [Generated(16, exact, rouge) for exact, rouge in ((0.0, 0.1), (0.25, 0.5))]
    start, last = (
        replace(each, held_out=replace(each.held_out, generated_overall=answers))
        for each, answers in zip((start, last), answered, strict=True)
    )
    text = outcome(start, first, second, last)
    assert re.search(r"^all examples +100 +25.0 % +50.0 % +\+25.0 +54.6 +7.39$", text, flags=re.MULTILINE)
    assert re.search(
        r"^answers +exact match 0.0 % -> 25.0 %, ROUGE-L 0.100 -> 0.500, on 16 prompts$", text, re.MULTILINE
    )
    assert re.search(r"^best round +1: validation loss 2.50 \(3.50 after round 3\)$", text, flags=re.MULTILINE)
    assert re.search(r"^ended early +after round 3", text, flags=re.MULTILINE)


def test_outcome_names_the_folder_of_the_best_round_where_there_is_one(tmp_path: Path) -> None:
    assert "best round's" not in outcome(*language_run(), out_dir=tmp_path)
    (tmp_path / "best").mkdir()
    assert f"best round's  {tmp_path / 'best'}" in outcome(*language_run(), out_dir=tmp_path)


def test_outcome_of_many_groups_shows_both_ends() -> None:
    names = tuple(f"hospital_{number:03d}" for number in range(100))
    text = outcome(report(0, clients=names), report(1, clients=names))
    assert "(84 between)" in text
    assert len(text.splitlines()) < 35


def test_outcome_without_scores_still_says_where_the_results_lie() -> None:
    bare = RoundReport(0, (), {}, {}, None, None, 0, 0)
    assert outcome(bare).lstrip().startswith("time")
