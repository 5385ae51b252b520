"""All that the runs of a comparison have given, as far as they are over; and the files that tell of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.files import write_file
from fedlora.common.locks import held
from fedlora.common.run_file import differences, load_run
from fedlora.common.run_folder import RUN_FILE
from fedlora.comparison import markdown, page
from fedlora.comparison.federates import alike
from fedlora.comparison.grid import Grid, final_cells, tuning_cells, variant_name
from fedlora.comparison.measured import finished_reports, result_of
from fedlora.comparison.results import CODEC, Comparison, IdleTrial, RunResult, Variant
from fedlora.comparison.work import LOCK_FILE, chosen, read, result, why_idle
from fedlora.server.disk.store import RunFolder

# What is another in each draw, and says nothing of what is compared.
_SEEDS = ("run.seed", "partition.seed", "run.name")

JSON_FILE, MARKDOWN_FILE, PAGE_FILE = "comparison.json", "comparison.md", "report.html"


def gathered(folder: Path, *, command: str) -> Comparison:
    """Return what the runs in a comparison's folder that are over have given.

    Raises:
        FedloraError: it is no comparison's.
    """
    base, grid = read(folder)
    values = chosen(folder, grid)
    variants = tuple(_with_choice(variant, grid, values.get(variant.name, {})) for variant in grid.variants())
    found = [result(folder, cell) for cell in final_cells(grid, values)]
    runs = _without_likeness(variants, [run for run in found if run is not None])
    metric = next((RunFolder(folder / run.folder).metric_name for run in runs if not run.fault), "metric")
    baseline = grid.variants()[0].name
    # What is compared and broken is named as such.
    idle = _idle_trials(folder, grid, named={run.folder for run in runs if run.fault})
    names_clients = _names_clients([cell.config(base) for cell in final_cells(grid, values) if cell.draw == 0])
    return Comparison(base.run.name, metric, baseline, grid.num_draws, variants, runs, command, idle, names_clients)


def gathered_from_runs(folders: Sequence[Path], *, command: str) -> Comparison:
    """Return the same of finished runs, each in a folder of its own.

    A variant is what runs have in common but for their seeds; it is named by its method and the keys in which the runs
    differ. Runs of one pair of seeds are of one draw. The first folder's variant is the baseline.

    Raises:
        ConfigError: a folder holds no run, or one that is not over or is judged by another metric, or one twice.
    """
    configs = {path: load_run(path / RUN_FILE, aggregates_elsewhere=True) for path in folders}
    first = configs[folders[0]]
    varying = _varying(list(configs.values()))
    seeds = sorted({(config.data_seed, config.run.seed) for config in configs.values()})
    variants: dict[str, Variant] = {}
    runs: list[RunResult] = []
    metric = RunFolder(folders[0]).metric_name
    for path, config in configs.items():
        reports = finished_reports(path, config)
        if not reports:
            raise ConfigError(f"{path}: the run is not over; fedlora simulate --resume --out {path} goes on with it")
        if (own := RunFolder(path).metric_name) != metric:
            raise ConfigError(f"{path} is judged by {own}, and {folders[0]} by {metric}; expected runs of one metric")
        told = config.model_dump(mode="json")
        settings = {key: str(_value(told, key)) for key in varying[config.method_name]}
        name = variant_name(config.method_name, settings)
        variants.setdefault(name, Variant(name, config.method_name, settings))
        draw = seeds.index((config.data_seed, config.run.seed))
        if any(run.variant == name and run.draw == draw for run in runs):
            raise ConfigError(f"{path}: a run of {name} with the same seeds was given before; expected each once")
        runs.append(result_of(reports, variant=name, draw=draw, folder=str(path)))
    found = tuple(variants.values())
    return Comparison(
        first.run.name, metric, found[0].name, len(seeds), found, _without_likeness(found, runs), command,
        names_clients=_names_clients(configs.values()),
    )  # fmt: skip


def write(comparison: Comparison, folder: Path) -> None:
    """Write comparison.json, comparison.md and report.html.

    Raises:
        StoreError: they cannot be written.
    """
    rendered = {
        JSON_FILE: CODEC.dump(comparison) + "\n",
        MARKDOWN_FILE: markdown.render(comparison),
        PAGE_FILE: page.render(comparison),
    }
    with held(folder / LOCK_FILE):
        for name, text in rendered.items():
            write_file(folder / name, text)


def _names_clients(configs: Iterable[RunConfig]) -> bool:
    return all(config.partition.by == "group" for config in configs)


def _idle_trials(folder: Path, grid: Grid, *, named: Collection[str]) -> tuple[IdleTrial, ...]:
    """Return the runs to choose by that say nothing, but for those that are named elsewhere by their folder."""
    found = []
    for cell in tuning_cells(grid):
        run = result(folder, cell)
        if run is not None and cell.folder not in named and (why := why_idle(run)):
            found.append(IdleTrial(cell.variant.name, cell.draw, cell.chosen, why, run.has_failed))
    return tuple(found)


def _varying(configs: Sequence[RunConfig]) -> dict[str, list[str]]:
    """Return by method the keys in which its runs differ from others: of any method, but its own settings from its."""
    names = {config.method_name for config in configs}
    found: dict[str, list[str]] = {}
    for name in names:
        own = [config for config in configs if config.method_name == name]
        of_all = {key for config in configs for key in differences(configs[0], config)}
        of_own = {key for config in own for key in differences(own[0], config)}
        found[name] = sorted(
            {key for key in of_all if not key.startswith("aggregation.") and key not in _SEEDS}
            | {key for key in of_own if key.startswith("aggregation.")}
        )
    return found


def _value(config: object, key: str) -> object:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _with_choice(variant: Variant, grid: Grid, taken: Mapping[str, str]) -> Variant:
    chosen = {key: grid.tuned[key] for key in taken}
    return replace(variant, settings={**variant.settings, **taken}, chosen=chosen)


def _without_likeness(variants: Sequence[Variant], runs: Sequence[RunResult]) -> tuple[RunResult, ...]:
    faults = alike(variants, runs)
    return tuple(replace(run, fault=run.fault or faults.get((run.variant, run.draw), "")) for run in runs)
