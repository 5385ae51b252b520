"""`fedlora simulate`: from options to a run, its view in the terminal, and its outcome."""

import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer
from rich.console import Console

from fedlora.cli.interrupts import exit_status, terminated_as_interrupted
from fedlora.cli.json_output import print_json
from fedlora.cli.live import metric_name_in, print_outcome, progress_view
from fedlora.cli.logs import log_to
from fedlora.cli.outcome import outcome_of
from fedlora.cli.outlets import toml_for
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.run_file import load_run, to_toml
from fedlora.common.run_folder import RUN_FILE
from fedlora.server.disk.account import seconds_worked
from fedlora.server.record.running_summary import Summarised
from fedlora.simulation import preset, simulate
from fedlora.simulation.simulate import choose_folder, engine_named
from fedlora.trackers import load_trackers

_DEFAULT_PRESET = "digits"


@dataclass(frozen=True)
class Options:
    """What was typed."""

    run: Path | None
    overrides: tuple[str, ...]
    preset: str | None
    out: Path | None
    engine: str
    workers: int | None
    resume: bool
    track: tuple[str, ...] = ()
    as_json: bool = False


def run_simulate(options: Options, *, only_print_config: bool) -> None:
    """Run what was asked for, and print its outcome.

    Raises:
        FedloraError: it cannot work; the caller prints why.
    """
    # What is told on the way is not for who reads the outcome.
    console = Console(stderr=options.as_json)
    config = _config(options)
    if only_print_config:
        print(toml_for(to_toml(config), getattr(sys.stdout, "encoding", None) or "utf-8"), end="")
        return
    engine = engine_named(options.engine)
    load_trackers(options.track)  # Before anything is written.
    log_to(console)
    out = choose_folder(config, options.out, resume=options.resume)
    try:
        view = progress_view(title=config.run.name, metric_name=partial(metric_name_in, out), console=console)
        with terminated_as_interrupted(), view as picture:
            result = simulate(
                config,
                out=out,
                engine=engine,
                num_workers=options.workers,
                resume=options.resume,
                listener=Summarised([picture]),
                track=options.track,
            )
    except KeyboardInterrupt as interrupt:
        # A run that was stopped before its manifest was written has given its folder back.
        has_begun = (out / RUN_FILE).is_file()
        remedy = f"go on with: fedlora simulate --resume --out {shlex.quote(str(out))}"
        print(f"interrupted; {remedy if has_begun else 'nothing was written yet'}", file=sys.stderr)
        raise typer.Exit(exit_status(interrupt)) from None
    if options.as_json:
        print_json(outcome_of(config.run.name, result.folder, result.reports, metric_name_in(result.folder)))
        return
    from fedlora.server.run_report import load_code

    print_outcome(
        console,
        reports=result.reports,
        metric_name=metric_name_in(result.folder),
        out_dir=result.folder,
        load_code=load_code(result.folder, config),
        worked=seconds_worked(result.folder),
    )


def _config(options: Options) -> RunConfig:
    """Return the run that was named: a file, a preset, or with --resume what the folder holds."""
    if options.run is not None and options.preset is not None:
        raise ConfigError("RUN.toml and --preset name two runs; give one of them")
    if options.run is not None:
        return load_run(options.run, options.overrides)
    if options.resume and options.preset is None:
        folder = choose_folder(preset(_DEFAULT_PRESET), options.out, resume=True)
        return load_run(folder / RUN_FILE, options.overrides)
    return preset(options.preset or _DEFAULT_PRESET, *options.overrides)
