"""A run as it happens: a panel that renews itself in a terminal, plain lines anywhere else; and its outcome.

`advance` and `panel` are pure: events and a time in, a state and something to print out.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlora.server.events import (
    EvaluationStarted,
    Event,
    Listener,
    RoundEnded,
    RoundStarted,
    RunStarted,
    UpdateArrived,
)
from fedlora.server.report.numbers import (
    mean_loss,
    round_seconds,
    trained,
)
from fedlora.server.report.wording import (
    count_text,
    duration_text,
    error_texts,
    list_text,
    loss_text,
    score_text,
)
from fedlora.server.round_report import RoundReport

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 24
_PANEL_WIDTH = 100


@dataclass(frozen=True)
class View:
    """What is known of the run at one moment.

    Attributes:
        title, metric_name: of the run.
        num_clients, num_rounds: 0 until the run has started.
        reports: the finished rounds.
        round: at work, 0 before the first.
        waiting: clients of this round that have not answered.
        num_asked: clients of this round.
        refused: of the whole run, as round, client, reason.
        phase: what is going on, in a word or two.
        round_began: on the clock that `panel` is called with, in seconds.
    """

    title: str
    metric_name: str
    num_clients: int = 0
    num_rounds: int = 0
    reports: tuple[RoundReport, ...] = ()
    round: int = 0
    waiting: tuple[str, ...] = ()
    num_asked: int = 0
    refused: tuple[tuple[int, str, str], ...] = ()
    phase: str = "starting"
    round_began: float = 0.0


def advance(view: View, event: Event, *, now: float) -> View:
    """Return the view after an event at the time `now`, in seconds on any clock."""
    match event:
        case RunStarted():
            refused = tuple((r.round, client, reason) for r in event.reports for client, reason in r.refused.items())
            return replace(
                view,
                num_clients=len(event.clients),
                num_rounds=event.num_rounds,
                reports=event.reports,
                refused=refused,
                round_began=now,
            )
        case RoundStarted():
            return replace(
                view,
                round=event.round,
                waiting=tuple(client for client in event.cohort if client not in event.recovered),
                num_asked=len(event.cohort),
                phase="training",
                round_began=now,
            )
        case UpdateArrived():
            waiting = tuple(client for client in view.waiting if client != event.client)
            refused = view.refused + (((event.round, event.client, event.reason),) if event.reason else ())
            return replace(view, waiting=waiting, refused=refused, phase="training" if waiting else "averaging")
        case EvaluationStarted():
            return replace(view, round=event.round, phase="evaluating")
        case RoundEnded():
            is_last = event.report.round >= view.num_rounds > 0
            return replace(
                view,
                reports=(*view.reports, event.report),
                waiting=(),
                phase="finished" if is_last else "between rounds",
                round_began=now,
            )


def seconds_left(view: View, *, now: float) -> float:
    """Return the time to the end if the rounds to come take as long as those finished; nan before there is one."""
    finished = trained(view.reports)
    if not finished:
        return math.nan
    mean = sum(map(round_seconds, finished)) / len(finished)
    # The last round judges the whole held-out set, as the start did.
    evaluations = [report.seconds.get("evaluation", 0.0) for report in (view.reports[0], *finished)]
    whole = max(0.0, evaluations[0] - sum(evaluations[1:]) / len(finished)) if view.reports[0].round == 0 else 0.0
    to_come = view.num_rounds - finished[-1].round
    return max(0.0, to_come * mean + whole - (now - view.round_began)) if to_come > 0 else 0.0


def curve(values: Sequence[float], *, width: int = _CURVE_WIDTH) -> str:
    """Return the values as a line of blocks, from their lowest to their highest; the latest where there is no room."""
    values = values[-width:]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    top = len(_BLOCKS) - 1
    return "".join(
        _BLOCKS[round(top * (value - low) / span) if span else 0] if math.isfinite(value) else " " for value in values
    )


def panel(view: View, *, now: float, num_seconds: float) -> Panel:
    """Return the view as a panel of about ten lines; `num_seconds` have passed since the command began."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="ellipsis", no_wrap=True)
    for name, content in _rows(view):
        grid.add_row(name, content)
    done = max(0, len(trained(view.reports)))
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        ProgressBar(total=max(1, view.num_rounds), completed=done, width=24),
        Text(_times(view, now=now, num_seconds=num_seconds)),
    )
    clients = f", {count_text(view.num_clients, 'client')}" if view.num_clients else ""
    return Panel(
        Group(bar, Text(), grid),
        title=Text(f" {view.title}{clients} ", style="bold"),
        title_align="left",
        border_style="blue" if view.phase != "finished" else "green",
        padding=(0, 2),
    )


def _times(view: View, *, now: float, num_seconds: float) -> str:
    at = f"round {view.round} of {view.num_rounds}" if view.num_rounds and view.round else "preparing"
    if view.phase == "finished":
        return f"all {count_text(view.num_rounds, 'round')} in {duration_text(num_seconds)}"
    left = seconds_left(view, now=now)
    about = f", about {duration_text(left)} left" if math.isfinite(left) else ""
    return f"{at}, {duration_text(num_seconds)}{about}"


def _rows(view: View) -> Iterator[tuple[str, Text]]:
    """Yield the panel's lines, each a name and what it says."""
    scored = [(r, r.held_out.overall) for r in view.reports if r.held_out is not None]
    if scored:
        latest, values = scored[-1][1], [score.metric for _, score in scored]
        row = Text.assemble(
            (f"{score_text(latest.metric, view.metric_name):>8}", "bold"), "  ", (curve(values), "blue")
        )
        if len(scored) > 1:
            row.append(f"  {score_text(values[0], view.metric_name)} before training", style="dim")
        yield view.metric_name, row
    if rounds := trained(view.reports):
        losses = [mean_loss(report) for report in rounds]
        yield "loss", Text.assemble((f"{loss_text(losses[-1]):>8}", "bold"), "  ", (curve(losses), "yellow"))
        if (errors := rounds[-1].aggregation) is not None:
            before, after = error_texts(errors.error_before, errors.error_after)
            yield (
                "error",
                Text.assemble(
                    (f"{before:>8}", "bold"),
                    " → ",
                    (after, "bold"),
                    ("  of the average, before and after the correction", "dim"),
                ),
            )
    yield "now", _now(view)
    if view.refused:
        at, client, reason = view.refused[-1]
        more = f", and {len(view.refused) - 1} before" if len(view.refused) > 1 else ""
        yield "refused", Text(f"{client} in round {at}: {_reason(reason)}{more}", style="red")


def _now(view: View) -> Text:
    if view.phase == "training" and view.waiting:
        done = view.num_asked - len(view.waiting)
        return Text(f"training, {done} of {view.num_asked} done; at work: {list_text(view.waiting, limit=5)}")
    return Text(view.phase)


def plain_lines(view: View, event: Event) -> list[str]:
    """Return what a log says about an event, given the view after it."""
    match event:
        case RunStarted():
            goes_on = f", goes on with round {event.next_round}" if event.next_round > 1 else ""
            clients = f"{count_text(view.num_clients, 'client')}, {count_text(view.num_rounds, 'round')}"
            return [f"{view.title}: {clients}{goes_on}", *(_report_line(view, r) for r in event.reports[-1:])]
        case UpdateArrived() if event.reason:
            return [f"{_round_name(view, event.round)}  {event.client} refused: {_reason(event.reason)}"]
        case RoundEnded():
            return [_report_line(view, event.report)]
    return []


def _report_line(view: View, report: RoundReport) -> str:
    parts = [_round_name(view, report.round)]
    if report.held_out is not None:
        parts.append(f"{view.metric_name} {score_text(report.held_out.overall.metric, view.metric_name)}")
    if report.round > 0:
        parts.append(f"loss {loss_text(mean_loss(report))}")
    if report.aggregation is not None:
        before, after = error_texts(report.aggregation.error_before, report.aggregation.error_after)
        parts.append(f"error of the average {before} -> {after}")
    if report.refused:
        parts.append(f"{len(report.clients)} of {len(report.cohort)} updates")
    return "  ".join([*parts, duration_text(round_seconds(report))])


def _round_name(view: View, at: int) -> str:
    width = len(str(view.num_rounds))
    name = f"round {at:>{width}}/{view.num_rounds}"
    return name if at else f"{'start':<{len(name)}}"


def _reason(code: str) -> str:
    return code.replace("_", " ")


@contextmanager
def progress_view(*, title: str, metric_name: str, console: Console | None = None) -> Iterator[Listener]:
    """Yield the listener to give to the run; the last state stays on the screen.

    It may be called from any thread. Without a terminal, or in one that has no cursor or no block
    characters, events become plain lines.
    """
    console = console or Console()
    began, lock = time.monotonic(), threading.Lock()
    view = View(title, metric_name)

    def step(event: Event) -> None:
        nonlocal view
        view = advance(view, event, now=time.monotonic())

    def show() -> Panel:
        now = time.monotonic()
        return panel(view, now=now, num_seconds=now - began)

    def print_lines(event: Event) -> None:
        with lock:
            step(event)
            for line in plain_lines(view, event):
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal or console.is_dumb_terminal or not console.encoding.startswith("utf"):
        yield print_lines
        return
    with Live(get_renderable=show, console=console, refresh_per_second=4):

        def renew(event: Event) -> None:
            with lock:
                step(event)

        yield renew


def print_outcome(
    console: Console,
    *,
    reports: Sequence[RoundReport],
    metric_name: str,
    out_dir: Path,
    load_code: str,
    seconds: float,
) -> None:
    """Print the scores by group before and after, how long it took, where the results lie and how to load them."""
    ...
