"""A run as it happens: a panel that renews itself in a terminal, plain lines anywhere else; and its outcome."""

import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fedlora.cli.run_view import RunView, advance, plain_lines, run_panel
from fedlora.server.events import Event, Listener
from fedlora.server.report.numbers import Gain, client_gains, group_gains, mean_gain, refusals, total_gains, trained
from fedlora.server.report.wording import count_text, duration_text, gain_text, is_percentage, score_text
from fedlora.server.round_report import RoundReport

# Of more groups than twice so many, those with the lowest and the highest scores are printed.
_MOST_GROUPS_AT_AN_END = 8


@contextmanager
def progress_view(*, title: str, metric_name: str, console: Console | None = None) -> Iterator[Listener]:
    """Yield the listener to give to the run, which may call it from any thread. The last state stays on the screen.

    Without a terminal, or in one that cannot move its cursor or has no block characters, events become plain lines.

    Args:
        title: the run's name.
        metric_name: "accuracy" is shown in percent, any other name as a number.
        console: where to show it; standard output if None.
    """
    console = console or Console()
    if console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf"):
        show = _renewing_panel
    else:
        show = _printed_lines
    with show(RunView(title, metric_name), console) as listener:
        yield listener


def print_outcome(
    console: Console,
    *,
    reports: Sequence[RoundReport],
    metric_name: str,
    out_dir: Path,
    load_code: str,
    seconds: float,
) -> None:
    """Print the scores by group before and after, the time, where the results lie and how to load them."""
    console.print()
    table = _scores(reports, metric_name)
    if table is not None:
        console.print(table)
    console.print()
    num_refused = sum(len(refusal.rounds) for refusal in refusals(reports))
    lines = [
        ("time", f"{count_text(len(trained(reports)), 'round')} in {duration_text(seconds)}"),
        ("report", str(out_dir / "report.html")),
        ("adapter", str(out_dir / "adapter")),
        ("to load it", ""),
    ]
    if num_refused:
        lines.insert(1, ("refused", f"{count_text(num_refused, 'update')}; the report says whose and why"))
    for name, words in lines:
        console.print(Text.assemble((f"{name:<12}", "dim"), words), soft_wrap=True)
    console.print(Text(textwrap.indent(load_code.rstrip(), "  ")), soft_wrap=True)


@contextmanager
def _renewing_panel(view: RunView, console: Console) -> Iterator[Listener]:
    began, lock = time.monotonic(), threading.Lock()

    def show() -> Panel:
        now = time.monotonic()
        return run_panel(view, now=now, num_seconds=now - began, width=console.width)

    def listen(event: Event) -> None:
        nonlocal view
        with lock:
            view = advance(view, event, now=time.monotonic())

    with Live(get_renderable=show, console=console, refresh_per_second=4):
        try:
            yield listen
        finally:
            if view.phase != "finished":
                view = replace(view, phase="stopped")


@contextmanager
def _printed_lines(view: RunView, console: Console) -> Iterator[Listener]:
    lock = threading.Lock()

    def listen(event: Event) -> None:
        nonlocal view
        with lock:
            before, view = view, advance(view, event, now=time.monotonic())
            for line in plain_lines(before, view, event):
                console.print(line, markup=False, highlight=False, soft_wrap=True)

    yield listen


def _scores(reports: Sequence[RoundReport], metric_name: str) -> Table | None:
    """Return the scores by held-out group, else by client on its own validation; None without any."""
    gains, noun = group_gains(reports), "group"
    totals = total_gains(reports)
    if totals:
        title = f"{metric_name} on held-out examples"
        gains = gains if len(gains) > 1 else []
    elif gains := client_gains(reports):
        title, noun = f"{metric_name} on each client's own validation examples", "client"
        totals = [mean_gain(gains, noun="client")]
    else:
        return None
    unit = "gain, points" if is_percentage(metric_name) else "gain"
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column(noun)
    for name in ("examples", "before", "after", unit):
        table.add_column(name, justify="right", no_wrap=True)
    for gain in _ends(gains):
        table.add_row(
            *_cells(gain, metric_name) if gain else [Text(f"({len(gains) - 2 * _MOST_GROUPS_AT_AN_END} between)")]
        )
    table.add_section()
    for total in totals:
        table.add_row(*_cells(total, metric_name), style="bold")
    return table


def _ends(gains: Sequence[Gain]) -> list[Gain | None]:
    """Return all, or of very many the lowest and the highest with None between."""
    if len(gains) <= 2 * _MOST_GROUPS_AT_AN_END:
        return list(gains)
    ordered = sorted(gains, key=lambda gain: gain.after if gain.after is not None else gain.before or 0.0)
    return [*ordered[:_MOST_GROUPS_AT_AN_END], None, *ordered[-_MOST_GROUPS_AT_AN_END:]]


def _cells(gain: Gain, metric_name: str) -> list[Text]:
    texts = (
        gain.name or "(no name)",
        f"{gain.num_examples:,}",
        score_text(gain.before, metric_name),
        score_text(gain.after, metric_name),
        gain_text(gain.before, gain.after, metric_name),
    )
    return [Text(text) for text in texts]
