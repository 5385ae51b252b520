"""What a terminal shows of a run: events and a time in, a state and something to print out. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Group
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedlora.server.events import (
    EvaluationStarted,
    Event,
    Noted,
    RoundEnded,
    RoundStarted,
    RunStarted,
    SiteChanged,
    SitesDescribed,
    UpdateArrived,
    Waiting,
)
from fedlora.server.report.numbers import is_of_tokens, mean_loss, perplexity, round_seconds, trained
from fedlora.server.report.validation import best_of, validation_by_round
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
from fedlora.server.round_report import RoundReport

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 24
_NAME_WIDTH = len("error of average")
_WIDEST, _WIDE_ENOUGH = 96, 72
_BORDERS = {"finished": "green", "stopped": "yellow"}


@dataclass(frozen=True)
class RunView:
    """What is known of the run at one moment.

    Attributes:
        title, metric_name: of the run.
        clients, num_rounds: empty and 0 until the run has started.
        reports: the finished rounds.
        round: at work, 0 before the first.
        cohort, waiting: the round's clients, and those of them that have not answered.
        refused: of the whole run, as round, client, reason.
        phase: what is going on, in a word or two; "finished" or "stopped" at the end.
        round_began: on the clock of `advance`, in seconds.
        sites: of a deployment, by name: state and detail.
        waiting_for: what the run waits for, in words; empty while it does not.
    """

    title: str
    metric_name: str
    clients: tuple[str, ...] = ()
    num_rounds: int = 0
    reports: tuple[RoundReport, ...] = ()
    round: int = 0
    cohort: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    refused: tuple[tuple[int, str, str], ...] = ()
    phase: str = "starting"
    round_began: float = 0.0
    sites: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    waiting_for: str = ""


def advance(view: RunView, event: Event, *, now: float) -> RunView:
    """Return the view after an event at the time `now`, in seconds on any clock that only runs forward."""
    match event:
        case RunStarted():
            refused = tuple(refusal for report in event.reports for refusal in _refused(report))
            started = replace(view, clients=event.clients, num_rounds=event.num_rounds, reports=event.reports)
            is_over = event.next_round > event.num_rounds or any(report.ended_early for report in event.reports)
            phase = "finished" if is_over else "starting"
            return replace(started, refused=refused, phase=phase, waiting_for="", round_began=now)
        case RoundStarted():
            waiting = tuple(client for client in event.cohort if client not in event.recovered)
            begun = replace(view, round=event.round, cohort=event.cohort, waiting=waiting, waiting_for="")
            return replace(begun, phase="training", round_began=now)
        case UpdateArrived():
            waiting = tuple(client for client in view.waiting if client != event.client)
            refused = ((event.round, event.client, event.reason),) if event.reason else ()
            phase = "training" if waiting else "averaging"
            return replace(view, waiting=waiting, refused=view.refused + refused, phase=phase)
        case EvaluationStarted():
            return replace(view, round=event.round, phase="evaluating")
        case RoundEnded():
            # Who never answered is refused without an event of its own.
            unheard = tuple(refusal for refusal in _refused(event.report) if refusal not in view.refused)
            is_last = event.report.round == view.num_rounds or event.report.ended_early
            phase = "finished" if is_last else "between rounds"
            ended = replace(view, reports=(*view.reports, event.report), refused=view.refused + unheard)
            return replace(ended, cohort=(), waiting=(), phase=phase, round_began=now)
        case SiteChanged():
            return replace(view, sites={**view.sites, event.site: (event.state, event.detail)})
        case Waiting():
            return replace(view, waiting_for=event.what)
        case Noted() | SitesDescribed():
            return view


def seconds_left(view: RunView, *, now: float) -> float:
    """Return the time to the end if rounds go on taking as long as those finished; nan before there is one."""
    finished = trained(view.reports)
    if not finished:
        return math.nan
    mean = sum(map(round_seconds, finished)) / len(finished)
    to_come = view.num_rounds - finished[-1].round
    return max(0.0, to_come * mean + _longer_last_evaluation(view.reports) - (now - view.round_began))


def curve(values: Sequence[float]) -> str:
    """Return the latest values as a line of blocks from their lowest to their highest, a gap for one not finite.

    A single value has no curve.
    """
    values = values[-_CURVE_WIDTH:]
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    heights = [(value - low) / span * (len(_BLOCKS) - 1) for value in values]
    return "".join(_BLOCKS[round(height)] if math.isfinite(height) else " " for height in heights)


def run_panel(view: RunView, *, now: float, num_seconds: float, width: int) -> Panel:
    """Return the view as a panel of about ten lines; `num_seconds` have passed since the command began."""
    answered = (len(view.cohort) - len(view.waiting)) / (len(view.cohort) + 1)
    done = len(trained(view.reports)) + answered
    width = min(width, _WIDEST)
    bar = ProgressBar(total=max(1, view.num_rounds), completed=done, width=14, complete_style="bright_blue")
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
    clients = f", {count_text(len(view.clients), 'client')}" if view.clients else ""
    return Panel(
        Group(head, Text(), rows),
        title=Text(f"{view.title}{clients}", style="bold"),
        title_align="left",
        border_style=_BORDERS.get(view.phase, "blue"),
        padding=(0, 2),
        width=width,
    )


def plain_lines(before: RunView, view: RunView, event: Event) -> list[str]:
    """Return what a log says about an event, given the views before and after it."""
    match event:
        case RunStarted():
            goes_on = f", going on with round {event.next_round}" if event.next_round > 1 else ""
            goes_on = ", all finished before" if view.phase == "finished" else goes_on
            size = f"{count_text(len(view.clients), 'client')}, {count_text(view.num_rounds, 'round')}"
            return [f"{view.title}: {size}{goes_on}", *(_report_line(view, report) for report in event.reports[-1:])]
        case SiteChanged():
            # Between ready and at work a site goes to and fro with every request.
            known = before.sites.get(event.site, ("", ""))[0]
            if event.state == "at work" or (event.state == "ready" and known == "at work"):
                return []
            return [f"site {event.site}: {event.state}{': ' + event.detail if event.detail else ''}"]
        case Waiting():
            return [f"waiting: {event.what}"]
        case UpdateArrived() | RoundEnded():
            new = view.refused[len(before.refused) :]
            lines = [f"{_round_name(view, at)}  refused {client}: {reason_text(reason)}" for at, client, reason in new]
            return lines if isinstance(event, UpdateArrived) else [*lines, _report_line(view, event.report)]
    return []


def _times(view: RunView, *, now: float, num_seconds: float) -> str:
    passed = duration_text(num_seconds)
    if view.phase == "finished":
        if view.reports and view.reports[-1].ended_early:
            return f"ended early after round {view.reports[-1].round} of {view.num_rounds}, {passed}"
        return f"{count_text(view.num_rounds, 'round')} finished, {passed}"
    at = f"round {view.round} of {view.num_rounds}" if view.round else "before the first round"
    if view.phase == "stopped":
        return f"stopped in {at}, after {passed}" if view.round else f"stopped {at}, after {passed}"
    left = seconds_left(view, now=now)
    return f"{at}, {passed} passed" + (f", about {duration_text(left)} left" if math.isfinite(left) else "")


def _rows(view: RunView) -> Iterator[tuple[str, Text]]:
    """Yield the panel's lines, each a name and what it says."""
    scores = [report.held_out.overall.metric for report in view.reports if report.held_out is not None]
    if scores:
        score = Text.assemble(
            (f"{score_text(scores[-1], view.metric_name):<7}", "bold"), "  ", (curve(scores), "bright_blue")
        )
        if len(scores) > 1:
            score.append(f"  from {score_text(scores[0], view.metric_name)}", style="dim")
        yield view.metric_name, score
        if is_of_tokens(view.reports):
            losses = [report.held_out.overall.loss for report in view.reports if report.held_out is not None]
            yield PERPLEXITY, _perplexity(losses)
    if rounds := trained(view.reports):
        losses = [mean_loss(report) for report in rounds]
        yield "loss", Text.assemble((f"{loss_text(losses[-1]):<7}", "bold"), "  ", (curve(losses), "yellow"))
        if (aggregation := rounds[-1].aggregation) is not None:
            yield "error of average", _errors(aggregation.error_before, aggregation.error_after)
        validation = validation_by_round(view.reports)
        if (best := best_of(validation)) is not None:
            yield "validation loss", _validation([score.loss for score in validation.values()], best)
    if view.sites:
        if rounds:
            yield "last round", Text(_moved(rounds[-1]))
        yield "sites", _sites(view.sites)
    if view.waiting_for:
        yield "waiting", Text(view.waiting_for, style="yellow")
    if view.phase not in _BORDERS:
        yield "now", _now(view)
    if view.refused:
        at, client, reason = view.refused[-1]
        earlier = f", and {len(view.refused) - 1} earlier" if len(view.refused) > 1 else ""
        yield "refused", Text(f"{client} in round {at}: {reason_text(reason)}{earlier}", style="red")


def _perplexity(losses: Sequence[float]) -> Text:
    first, last = (score_text(perplexity(loss), PERPLEXITY) for loss in (losses[0], losses[-1]))
    text = Text.assemble((f"{last:<7}", "bold"), "  ", (curve(losses), "bright_blue"))
    return text.append(f"  from {first}", style="dim") if len(losses) > 1 else text


def _validation(losses: Sequence[float], best: int) -> Text:
    text = Text.assemble((f"{loss_text(losses[-1]):<7}", "bold"), "  ", (curve(losses), "green"))
    return text.append(f"  best after round {best}" if best else "  best at the start", style="dim")


def _errors(before: float, after: float) -> Text:
    if before == after:
        return Text.assemble((significant(before, 3), "bold"), ("  not corrected", "dim"))
    texts = error_texts(before, after)
    return Text.assemble((f"{texts[0]} → {texts[1]}", "bold"), ("  plain → corrected", "dim"))


def _now(view: RunView) -> Text:
    if view.phase == "training" and view.waiting:
        done = len(view.cohort) - len(view.waiting)
        return Text(f"{done} of {len(view.cohort)} clients done; at work: {list_text(view.waiting)}")
    return Text(view.phase)


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
    if report.ended_early:
        parts.append("ended early")
    if report.refused:
        parts.append(f"{len(report.clients)} of {count_text(len(report.cohort), 'update')}")
    return "  ".join([*parts, duration_text(round_seconds(report))])


def _longer_last_evaluation(reports: Sequence[RoundReport]) -> float:
    """Return by how many seconds the last evaluation, of the whole held-out set as at the start, may be longer."""
    start, finished = reports[0], trained(reports)
    if start.round > 0:
        return 0.0
    mean = sum(report.seconds.get("evaluation", 0.0) for report in finished) / len(finished)
    return max(0.0, start.seconds.get("evaluation", 0.0) - mean)


def _refused(report: RoundReport) -> Iterator[tuple[int, str, str]]:
    return ((report.round, client, reason) for client, reason in report.refused.items())


def _round_name(view: RunView, at: int) -> str:
    name = f"round {at:>{len(str(view.num_rounds))}}/{view.num_rounds}"
    return name if at else "start".ljust(len(name))
