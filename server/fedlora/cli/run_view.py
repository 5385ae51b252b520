"""What a terminal shows of a run: events and a time in, a state and something to print out. Pure."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlora.server.record.events import (
    Event,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    UpdateArrived,
    Waiting,
)
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.running_summary import NUM_LATEST, Course, RunningSummary, new_refusals
from fedlora.server.record.totals import mean_loss, round_seconds
from fedlora.server.report.numbers import perplexity
from fedlora.server.report.shares import cap_lines
from fedlora.server.report.wording import (
    PERPLEXITY,
    bytes_text,
    count_text,
    duration_text,
    error_texts,
    list_text,
    loss_text,
    reason_text,
    score_text,
    significant,
)

_BLOCKS = "▁▂▃▄▅▆▇█"
_NAME_WIDTH = len("error of average")
_WIDEST, _WIDE_ENOUGH = 96, 72
_BORDERS = {"finished": "green", "stopped": "yellow"}


@dataclass(frozen=True)
class RunView:
    """What is shown of the run at one moment.

    Attributes:
        title, metric_name: of the run.
        summary: what is known of it.
        round_began: the round at work, on the clock of `advance`, in seconds.
    """

    title: str
    metric_name: str
    summary: RunningSummary = field(default_factory=RunningSummary)
    round_began: float = 0.0


def advance(view: RunView, event: Event, summary: RunningSummary, *, now: float) -> RunView:
    """Return the view after an event, of which `summary` tells, at the time `now`.

    `now` is in seconds on any clock that only runs forward.
    """
    begins = isinstance(event, RunStarted | RoundStarted | RoundEnded)
    return replace(view, summary=summary, round_began=now if begins else view.round_began)


def seconds_left(view: RunView, *, now: float) -> float:
    """Return the time to the end if rounds go on taking as long as those finished; nan before there is one."""
    last, totals = view.summary.last_trained, view.summary.totals
    if last is None:
        return math.nan
    to_come = view.summary.num_rounds - last.round
    # The last evaluation, of the whole held-out set as at the start, may be longer than the others.
    longer = max(0.0, view.summary.start_evaluation_seconds - totals.evaluation_seconds / totals.rounds)
    return max(0.0, to_come * totals.seconds / totals.rounds + longer - (now - view.round_began))


def curve(values: Sequence[float]) -> str:
    """Return the latest values as a line of blocks from their lowest to their highest, a gap for one not finite.

    A single value has no curve.
    """
    values = values[-NUM_LATEST:]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    heights = [(value - low) / span * (len(_BLOCKS) - 1) for value in values]
    return "".join(_BLOCKS[round(height)] if math.isfinite(height) else " " for height in heights)


def run_panel(view: RunView, *, now: float, num_seconds: float, width: int) -> Panel:
    """Return the view as a panel of about ten lines; `num_seconds` have passed since the command began."""
    summary = view.summary
    done = summary.totals.rounds + summary.answered_share
    width = min(width, _WIDEST)
    bar = ProgressBar(total=max(1, summary.num_rounds), completed=done, width=14, complete_style="bright_blue")
    times = Text(_times(view, now=now, num_seconds=num_seconds), overflow="ellipsis", no_wrap=True)
    head = Table.grid(padding=(0, 2))
    if width >= _WIDE_ENOUGH:
        head.add_row(bar, times)
    else:
        head.add_row(bar)
        head.add_row(times)
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True, width=_NAME_WIDTH)
    rows.add_column(overflow="ellipsis", no_wrap=True, max_width=max(10, width - _NAME_WIDTH - 8))
    for name, content in _rows(view):
        rows.add_row(name, content)
    clients = f", {count_text(len(summary.clients), 'client')}" if summary.clients else ""
    return Panel(
        Group(head, Text(), rows),
        title=Text(f"{view.title}{clients}", style="bold"),
        title_align="left",
        border_style=_BORDERS.get(summary.phase, "blue"),
        padding=(0, 2),
        width=width,
    )


def plain_lines(before: RunView, view: RunView, event: Event) -> list[str]:
    """Return what a log says about an event, given the views before and after it."""
    summary = view.summary
    match event:
        case RunStarted():
            goes_on = f", going on with round {event.next_round}" if event.next_round > 1 else ""
            goes_on = ", all finished before" if summary.phase == "finished" else goes_on
            size = f"{count_text(len(summary.clients), 'client')}, {count_text(summary.num_rounds, 'round')}"
            return [f"{view.title}: {size}{goes_on}", *(_report_line(view, report) for report in event.reports[-1:])]
        case SiteChanged():
            # Between ready and at work a site goes to and fro with every request.
            known = before.summary.sites.get(event.site, ("", ""))[0]
            if event.state == "at work" or (event.state == "ready" and known == "at work"):
                return []
            return [f"site {event.site}: {event.state}{': ' + event.detail if event.detail else ''}"]
        case Waiting():
            return [f"waiting: {event.what}"] if event.what else []
        case UpdateArrived():
            return _refusal_lines(view, event.round, new_refusals(before.summary, event))
        case RoundEnded(report=report):
            refused = new_refusals(before.summary, event)
            capped = [f"{_round_name(view, report.round)}  capped {line}" for line in cap_lines(report)]
            return [*_refusal_lines(view, report.round, refused), *capped, _report_line(view, report)]
    return []


def _times(view: RunView, *, now: float, num_seconds: float) -> str:
    summary, passed = view.summary, duration_text(num_seconds)
    if summary.phase == "finished":
        if summary.last is not None and summary.last.ended_early:
            return f"ended early after round {summary.last.round} of {summary.num_rounds}, {passed}"
        return f"{count_text(summary.num_rounds, 'round')} finished, {passed}"
    at = f"round {summary.round} of {summary.num_rounds}" if summary.round else "before the first round"
    if summary.phase == "stopped":
        return f"stopped in {at}, after {passed}" if summary.round else f"stopped {at}, after {passed}"
    left = seconds_left(view, now=now)
    return f"{at}, {passed} passed" + (f", about {duration_text(left)} left" if math.isfinite(left) else "")


def _rows(view: RunView) -> Iterator[tuple[str, Text]]:
    """Yield the panel's lines, each a name and what it says."""
    summary = view.summary
    if summary.scores.latest:
        yield view.metric_name, _scored(summary.scores, lambda metric: score_text(metric, view.metric_name))
        if summary.is_of_tokens:
            yield (
                PERPLEXITY,
                _scored(summary.held_out_losses, lambda loss: score_text(perplexity(loss), PERPLEXITY)),
            )
    if (report := summary.last_trained) is not None:
        yield "loss", _latest(loss_text(summary.losses.latest[-1]), summary.losses, "yellow")
        if (aggregation := report.aggregation) is not None:
            yield "error of average", _errors(aggregation.error_before, aggregation.error_after)
        if report.epsilon is not None:
            yield "epsilon", Text(f"{report.epsilon:.2f}")
        if (best := summary.validation.best) is not None:
            yield "validation loss", _validation(summary.validation.course, best[1])
        if capped := cap_lines(report):
            yield "capped", Text(list_text(capped), style="yellow")
    if summary.sites:
        if report is not None:
            yield "last round", Text(_moved(report))
        yield "sites", _sites(summary.sites)
    if (disk := summary.disk) is not None:
        sizes = f"{bytes_text(disk.free_bytes)} free, {bytes_text(disk.needed_bytes)} needed"
        yield "disk", Text(f"too full: {sizes}", style="bold red")
    if summary.waiting_for:
        yield "waiting", Text(summary.waiting_for, style="yellow")
    if summary.phase not in _BORDERS:
        yield "now", _now(summary)
    if summary.last_refused is not None:
        at, client, reason = summary.last_refused
        earlier = f", and {summary.num_refused - 1} earlier" if summary.num_refused > 1 else ""
        yield "refused", Text(f"{client} in round {at}: {reason_text(reason)}{earlier}", style="red")


def _scored(course: Course, text: Callable[[float], str]) -> Text:
    """Return the latest of a score's values, its curve, and with what it began."""
    shown = _latest(text(course.latest[-1]), course, "bright_blue")
    return shown.append(f"  from {text(course.first)}", style="dim") if len(course.latest) > 1 else shown


def _validation(course: Course, best: int) -> Text:
    text = _latest(loss_text(course.latest[-1]), course, "green")
    return text.append(f"  best after round {best}" if best else "  best at the start", style="dim")


def _latest(text: str, course: Course, style: str) -> Text:
    return Text.assemble((f"{text:<7}", "bold"), "  ", (curve(course.latest), style))


def _errors(before: float, after: float) -> Text:
    if before == after:
        return Text.assemble((significant(before, 3), "bold"), ("  not corrected", "dim"))
    texts = error_texts(before, after)
    return Text.assemble((f"{texts[0]} → {texts[1]}", "bold"), ("  plain → corrected", "dim"))


def _now(summary: RunningSummary) -> Text:
    if summary.phase == "training" and summary.waiting:
        done = len(summary.cohort) - len(summary.waiting)
        at_work = [client for client in summary.cohort if client in summary.waiting]
        return Text(f"{done} of {len(summary.cohort)} clients done; at work: {list_text(at_work)}")
    return Text(summary.phase)


def _sites(sites: Mapping[str, tuple[str, str]]) -> Text:
    """Return the sites by state: those that can take part by number, the others by name."""
    by_state: dict[str, list[str]] = {}
    for name, (state, detail) in sorted(sites.items()):
        by_state.setdefault(state, []).append(f"{name} ({detail})" if detail else name)
    there = [f"{len(by_state[state])} {state}" for state in ("ready", "at work", "starting") if state in by_state]
    missing = [f"{state}: {list_text(by_state[state])}" for state in ("not ready", "away") if state in by_state]
    return Text(", ".join([*there, *missing]))


def _moved(report: RoundReport) -> str:
    """Return the adapter bytes of a round, and its seconds by phase."""
    seconds = ", ".join(f"{phase} {duration_text(spent)}" for phase, spent in report.seconds.items())
    return f"{bytes_text(report.bytes_down)} down, {bytes_text(report.bytes_up)} up; {seconds}"


def _report_line(view: RunView, report: RoundReport) -> str:
    parts = [_round_name(view, report.round)]
    if report.held_out is not None:
        overall = report.held_out.overall
        parts.append(f"{view.metric_name} {score_text(overall.metric, view.metric_name)}")
        if overall.num_tokens:
            parts.append(f"{PERPLEXITY} {score_text(perplexity(overall.loss), PERPLEXITY)}")
    if report.round > 0:
        parts.append(f"loss {loss_text(mean_loss(report))}")
    if report.aggregation is not None:
        before, after = error_texts(report.aggregation.error_before, report.aggregation.error_after)
        parts.append(f"error of the average {before} -> {after}")
    if report.epsilon is not None:
        parts.append(f"epsilon {report.epsilon:.2f}")
    if report.ended_early:
        parts.append("ended early")
    if report.refused:
        parts.append(f"{len(report.clients)} of {count_text(len(report.cohort), 'update')}")
    return "  ".join([*parts, duration_text(round_seconds(report))])


def _refusal_lines(view: RunView, at: int, refused: Mapping[str, str]) -> list[str]:
    return [f"{_round_name(view, at)}  refused {client}: {reason_text(reason)}" for client, reason in refused.items()]


def _round_name(view: RunView, at: int) -> str:
    num_rounds = view.summary.num_rounds
    name = f"round {at:>{len(str(num_rounds))}}/{num_rounds}"
    return name if at else "start".ljust(len(name))
