"""`fedlora compare`: from options to the runs of a comparison, and what they have shown."""

import shlex
import sys
import time
from collections.abc import Sequence

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.cli.compare_options import Options, base_of, grid_of, require_runs
from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.json_output import print_json
from fedlora.cli.logs import log_to
from fedlora.cli.outputs import ComparisonWritten
from fedlora.common.printable import printable
from fedlora.comparison import finding, tables
from fedlora.comparison.beforehand import notes_beforehand
from fedlora.comparison.evaluation import evaluate
from fedlora.comparison.gathered import JSON_FILE, MARKDOWN_FILE, PAGE_FILE, gathered, gathered_from_runs, write
from fedlora.comparison.grid import require_usable
from fedlora.comparison.results import Comparison, Variant
from fedlora.comparison.running import Progress, run_all
from fedlora.comparison.wording import settings_text, variant_lines
from fedlora.comparison.work import begin
from fedlora.server.report.content import Table as Shown
from fedlora.server.report.wording import duration_text
from fedlora.simulation.simulate import engine_named

# Columns for which a terminal has no room.
_LEFT_TO_THE_REPORT = ("draws", "pairs", "worst group", "p", "smallest that can be shown")


def run_compare(options: Options) -> None:
    """Do the runs, or take those that are given, write what they show, and print it.

    Raises:
        FedloraError: it cannot work; the caller prints why.
    """
    # What is told on the way is not for who reads the outcome.
    console = Console(stderr=options.as_json)
    command = shlex.join(["fedlora", *sys.argv[1:]])
    if options.are_of_runs:
        require_runs(options)
        _show(gathered_from_runs(options.paths, command=command), options, console)
        return
    engine = engine_named(options.engine or "inprocess")
    base, grid = base_of(options), grid_of(options)
    require_usable(grid, base)
    log_to(console)
    # What is wrong with the data is said before anything is written.
    for note in notes_beforehand(grid, base):
        console.print(f"note: {printable(note)}", markup=False, highlight=False, soft_wrap=True)
    begin(options.out, base, grid)
    try:
        with terminated_as_interrupted():
            run_all(options.out, num_workers=options.workers, listener=_Lines(console), engine=engine)
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(exit_status(interrupt)) from None
    _show(gathered(options.out, command=command), options, console)


class _Lines:
    """Prints a line for each run that is over, with the time that the others may take."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._num_before = 0

    def __call__(self, progress: Progress) -> None:
        found, passed = progress.result, time.monotonic() - self._began
        self._num_before += progress.was_over
        num_own = progress.num_done - self._num_before
        left = passed / num_own * (progress.num_all - progress.num_done) if num_own else 0.0
        said = found.fault or f"{found.course.metric[-1]:.4f}"
        about = f", about {duration_text(left)} left" if left else ""
        tried = settings_text(progress.tried)
        what = f"{found.variant}, draw {found.draw}{f' (to choose: {tried})' if tried else ''}: {said}"
        line = f"{progress.num_done:>4}/{progress.num_all}  {what}{about}"
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _show(comparison: Comparison, options: Options, console: Console) -> None:
    out = options.out
    write(comparison, out)
    evaluation = evaluate(comparison)
    if options.as_json:
        headline, notes = finding.headline(evaluation), tuple(finding.left_out(evaluation))
        print_json(
            ComparisonWritten(headline, notes, *(str(out / name) for name in (JSON_FILE, MARKDOWN_FILE, PAGE_FILE)))
        )
        return
    console.print()
    console.print(printable(finding.headline(evaluation)), markup=False, highlight=False, style="bold")
    for shown in (tables.scores(evaluation), tables.differences(evaluation)):
        if shown is not None and shown.rows:
            console.print()
            console.print(_table(shown, comparison.variants))
    console.print(printable(finding.about_power(evaluation)), markup=False, highlight=False, style="dim")
    for note in finding.left_out(evaluation):
        console.print(printable(note), markup=False, highlight=False, style="yellow")
    console.print()
    for name, path in (("report", PAGE_FILE), ("tables", MARKDOWN_FILE), ("all of it", JSON_FILE)):
        console.print(Text.assemble((f"{name:<14}", "dim"), str(out / path)), soft_wrap=True)


def _table(shown: Shown, variants: Sequence[Variant]) -> Table:
    """Return a table of which the first cells are variants' names: each setting stands on a line of its own."""
    lines = {variant.name: variant_lines(variant) for variant in variants}
    table = Table(title=printable(shown.caption), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    places = [place for place, name in enumerate(shown.head) if name not in _LEFT_TO_THE_REPORT]
    for place in places:
        is_text = place < shown.num_text_columns
        table.add_column(printable(shown.head[place]), justify="left" if is_text else "right", no_wrap=is_text)
    for name, *cells in shown.rows:
        row = ["\n  ".join(map(printable, lines[name])), *map(printable, cells)]
        table.add_row(*(Text(row[place]) for place in places))
    return table
