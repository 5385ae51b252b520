"""`fedlora compare`: from options to the runs of a comparison, and what they have shown."""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedlora.aggregation import FedIT
from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.logs import log_to
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.method_names import DEFAULT
from fedlora.common.printable import printable
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import RUN_FILE
from fedlora.comparison import finding, tables
from fedlora.comparison.evaluation import evaluate
from fedlora.comparison.gathered import JSON_FILE, MARKDOWN_FILE, PAGE_FILE, gathered, gathered_from_runs, write
from fedlora.comparison.grid import Grid, require_usable
from fedlora.comparison.results import Comparison
from fedlora.comparison.running import Progress, run_all
from fedlora.comparison.work import begin
from fedlora.server.report.content import Table as Shown
from fedlora.server.report.wording import duration_text
from fedlora.simulation import preset
from fedlora.simulation.simulate import engine_named
from fedlora.training.data import load_federated_data

_DEFAULT_PRESET = "digits"
# Columns for which a terminal has no room.
_LEFT_TO_THE_REPORT = ("draws", "pairs", "worst group", "p", "smallest that can be shown")


@dataclass(frozen=True)
class Options:
    """What was typed."""

    paths: tuple[Path, ...]
    overrides: tuple[str, ...]
    preset: str | None
    methods: str
    references: str
    over: tuple[str, ...]
    tune: tuple[str, ...]
    draws: int
    tuning_draws: int
    out: Path
    engine: str
    workers: int | None


def run_compare(options: Options) -> None:
    """Do the runs, or take those that are given, write what they show, and print it.

    Raises:
        FedloraError: it cannot work; the caller prints why.
    """
    console = Console()
    command = shlex.join(["fedlora", *sys.argv[1:]])
    if len(options.paths) > 1 or any(path.is_dir() for path in options.paths):
        _require_runs(options.paths)
        _show(gathered_from_runs(options.paths, command=command), options.out, console)
        return
    engine = engine_named(options.engine)
    base = _base(options)
    grid = Grid(
        _names(options.methods) or (FedIT.name, DEFAULT),
        _values(options.over, option="--over"),
        _values(options.tune, option="--tune"),
        _names(options.references),
        options.draws,
        options.tuning_draws,
    )
    require_usable(grid, base)
    log_to(console)
    # What is wrong with the data is said before anything is written, and their notes once.
    for note in load_federated_data(base).notes:
        console.print(f"note: {printable(note.text)}", markup=False, highlight=False, soft_wrap=True)
    begin(options.out, base, grid)
    try:
        with terminated_as_interrupted():
            run_all(options.out, num_workers=options.workers, listener=_Lines(console), engine=engine)
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise typer.Exit(exit_status(interrupt)) from None
    _show(gathered(options.out, command=command), options.out, console)


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
        tried = ", ".join(f"{key}={value}" for key, value in progress.tried.items())
        what = f"{found.variant}, draw {found.draw}{f' (to choose: {tried})' if tried else ''}: {said}"
        line = f"{progress.num_done:>4}/{progress.num_all}  {what}{about}"
        self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def _show(comparison: Comparison, out: Path, console: Console) -> None:
    write(comparison, out)
    evaluation = evaluate(comparison)
    console.print()
    console.print(printable(finding.headline(evaluation)), markup=False, highlight=False, style="bold")
    for shown in (tables.scores(evaluation), tables.differences(evaluation)):
        if shown is not None and shown.rows:
            console.print()
            console.print(_table(shown))
    console.print(printable(finding.about_power(evaluation)), markup=False, highlight=False, style="dim")
    for note in finding.left_out(evaluation):
        console.print(printable(note), markup=False, highlight=False, style="yellow")
    console.print()
    for name, path in (("report", PAGE_FILE), ("tables", MARKDOWN_FILE), ("all of it", JSON_FILE)):
        console.print(Text.assemble((f"{name:<14}", "dim"), str(out / path)), soft_wrap=True)


def _table(shown: Shown) -> Table:
    table = Table(title=printable(shown.caption), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    places = [place for place, name in enumerate(shown.head) if name not in _LEFT_TO_THE_REPORT]
    for place in places:
        is_text = place < shown.num_text_columns
        table.add_column(printable(shown.head[place]), justify="left" if is_text else "right", no_wrap=is_text)
    for name, *cells in shown.rows:
        row = [_in_lines(name), *map(printable, cells)]
        table.add_row(*(Text(row[place]) for place in places))
    return table


def _in_lines(variant: str) -> str:
    """Return a variant's name with each setting on a line of its own, without its section."""
    method, *settings = printable(variant).split(", ")
    return "\n".join([method, *(f"  {setting.partition('.')[2]}" for setting in settings)])


def _base(options: Options) -> RunConfig:
    if options.paths and options.preset is not None:
        raise ConfigError("RUN.toml and --preset name two runs; give one of them")
    if options.paths:
        return load_run(options.paths[0], options.overrides)
    return preset(options.preset or _DEFAULT_PRESET, *options.overrides)


def _require_runs(paths: Sequence[Path]) -> None:
    for path in paths:
        if not (path / RUN_FILE).is_file():
            raise ConfigError(f"{path} is no folder of a run; expected one RUN.toml, or folders of finished runs")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _values(texts: Sequence[str], *, option: str) -> Mapping[str, tuple[str, ...]]:
    """Return by key the values in `section.key=V1,V2`; a comma inside of brackets or quotes separates none."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        taken = tuple(part.strip() for part in _split(values) if part.strip())
        if not equals or "." not in key or not taken:
            raise ConfigError(f"{option} is {text!r}; expected section.key=VALUE,VALUE ...")
        if key in found or len(set(taken)) < len(taken):
            raise ConfigError(f"{option} has {key} or one of its values twice; expected each once")
        found[key.strip()] = taken
    return found


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            parts.append("")
            continue
        if character in "\"'" and quote in ("", character):
            quote = "" if quote else character
        elif not quote:
            depth += (character in "[{") - (character in "]}")
        parts[-1] += character
    return parts
