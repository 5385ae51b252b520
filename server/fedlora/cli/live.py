"""A run as it happens: a panel that renews itself in a terminal, plain lines anywhere else; and its outcome."""

import logging
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from fedlora.cli.finished_view import outcome_lines, refusal_lines, scores_table
from fedlora.cli.ledger_view import ledger_lines
from fedlora.cli.logs import VIEWED, terminal_to_ourselves
from fedlora.cli.notes_view import note_lines
from fedlora.cli.run_view import RunView, advance, plain_lines, run_panel
from fedlora.common.printable import printable
from fedlora.common.run_folder import BEST_FOLDER, REPORT_FILE
from fedlora.server.record.events import Event, RunStarted, SiteChanged
from fedlora.server.record.hourly import Hourly
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.running_summary import Picture, RunningSummary, ended
from fedlora.server.record.totals import run_seconds, trained
from fedlora.server.report.wording import count_text, duration_text


@contextmanager
def progress_view(
    *, title: str, metric_name: str | Callable[[], str], console: Console | None = None
) -> Iterator[Picture]:
    """Yield what shows each event of the run, from any thread. The last state stays on the screen.

    Without a terminal, or in one that cannot move its cursor or has no block characters, events become plain lines.

    Args:
        title: the run's name.
        metric_name: an accuracy is shown in percent, any other as a number. Where only the run's clients know it, what
            tells it once they have been met.
        console: where to show it; standard output if None.
    """
    console = console or Console()
    told, known = ("metric", metric_name) if callable(metric_name) else (metric_name, lambda: metric_name)
    if has_live_view(console):
        with _renewing_panel(RunView(title, told), console, known) as picture:
            yield picture
    else:
        yield _lines_of(RunView(title, told), lambda line: _print_lines(console, [line]), known)


def has_live_view(console: Console) -> bool:
    """Return whether a run is shown as a panel that renews itself."""
    return console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")


def logged_events(*, title: str, metric_name: Callable[[], str]) -> Picture:
    """Return what logs each event of the run, in the lines that are printed without a terminal."""
    logger = logging.getLogger(VIEWED)
    return _lines_of(RunView(title, "metric"), lambda line: logger.info("%s", line), metric_name)


def metric_name_in(folder: Path) -> str:
    """Return the name of the metric by which the run in a folder is judged, as soon as it has met its clients."""
    # Imports torch, which the run has done before it has met them.
    from fedlora.server.disk.store import RunFolder

    return RunFolder(folder).metric_name


def print_outcome(
    console: Console,
    *,
    reports: Sequence[RoundReport],
    metric_name: str,
    out_dir: Path,
    load_code: str,
    worked: float,
) -> None:
    """Print the scores by group before and after, the best round, where the results lie and how to load them.

    `worked` is the seconds of all processes that have worked on the run.
    """
    console.print()
    table = scores_table(reports, metric_name)
    if table is not None:
        console.print(table)
    console.print()
    lines = [
        *outcome_lines(reports),
        ("time", f"{count_text(len(trained(reports)), 'round')} in {duration_text(run_seconds(reports, worked))}"),
        *refusal_lines(reports),
        *ledger_lines(out_dir),
        ("report", str(out_dir / REPORT_FILE)),
        ("adapter", str(out_dir / "adapter")),
        *([("best round's", str(out_dir / BEST_FOLDER))] if (out_dir / BEST_FOLDER).is_dir() else []),
        ("to load it", ""),
    ]
    for name, words in lines:
        console.print(Text.assemble((f"{name:<14}", "dim"), words), soft_wrap=True)
    console.print(Text(textwrap.indent(load_code.rstrip(), "  ")), soft_wrap=True)


@contextmanager
def _renewing_panel(view: RunView, console: Console, metric_name: Callable[[], str]) -> Iterator[Picture]:
    began = time.monotonic()

    def show() -> Panel:
        now = time.monotonic()
        return run_panel(view, now=now, num_seconds=now - began, width=console.width)

    def draw(event: Event, _before: RunningSummary, summary: RunningSummary) -> None:
        nonlocal view
        view = _after(view, event, summary, metric_name)
        _print_lines(console, note_lines(event))

    with Live(get_renderable=show, console=console, refresh_per_second=4), terminal_to_ourselves():
        try:
            yield draw
        finally:
            view = replace(view, summary=ended(view.summary))


def _lines_of(view: RunView, say: Callable[[str], None], metric_name: Callable[[], str]) -> Picture:
    hourly = Hourly()

    def draw(event: Event, _before: RunningSummary, summary: RunningSummary) -> None:
        nonlocal view
        before, view = view, _after(view, event, summary, metric_name)
        for _, site, num in hourly.counted():
            say(f"site {site}: came and went, {count_text(num, 'line')} more")
        lines = plain_lines(before, view, event)
        # A site that loses its connection again and again fills no log.
        if lines and isinstance(event, SiteChanged) and not hourly.admits("site", event.site):
            lines = []
        for line in (*note_lines(event), *lines):
            say(line)

    return draw


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _after(view: RunView, event: Event, summary: RunningSummary, metric_name: Callable[[], str]) -> RunView:
    if isinstance(event, RunStarted):
        view = replace(view, metric_name=metric_name())
    return advance(view, event, summary, now=time.monotonic())
