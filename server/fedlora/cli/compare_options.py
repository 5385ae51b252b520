"""What was typed of a comparison: the run file and the grid, or folders of finished runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.method_names import DEFAULT
from fedlora.common.run_file import load_run
from fedlora.common.run_folder import RUN_FILE
from fedlora.comparison.gathered import PAGE_FILE
from fedlora.comparison.grid import Grid, is_one_value
from fedlora.comparison.work import GRID_FILE
from fedlora.simulation import preset

_DEFAULT_PRESET = "digits"
_DEFAULT_DRAWS, _DEFAULT_TUNING_DRAWS = 10, 2


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
    draws: int | None
    tuning_draws: int | None
    out: Path
    engine: str | None
    workers: int | None
    as_json: bool = False

    @property
    def are_of_runs(self) -> bool:
        """Whether runs that are there are to be compared."""
        return len(self.paths) > 1 or any(path.is_dir() for path in self.paths)


def require_runs(options: Options) -> None:
    """Check that folders of runs were given, and with them nothing that belongs to runs still to be done.

    Raises:
        ConfigError: it is not so, or --out is another comparison's.
    """
    for path in options.paths:
        if (path / GRID_FILE).is_file():
            raise ConfigError(
                f"{path} is the folder of a comparison and of no run; its page is {path / PAGE_FILE}, and the command "
                f"that made it goes on with it. To compare its runs anew, give their folders: {path}/runs/*/draw-*/"
            )
        if not (path / RUN_FILE).is_file():
            raise ConfigError(f"{path} is no folder of a run; expected one RUN.toml, or folders of finished runs")
    for option, given in (
        ("--methods", options.methods),
        ("--references", options.references),
        ("--over", options.over),
        ("--tune", options.tune),
        ("--set", options.overrides),
        ("--preset", options.preset),
        ("--draws", options.draws),
        ("--tuning-draws", options.tuning_draws),
        ("--engine", options.engine),
        ("--workers", options.workers),
    ):
        if given:
            raise ConfigError(f"{option} does nothing with folders of finished runs; leave it out, or give a RUN.toml")
    if (options.out / GRID_FILE).is_file():
        raise ConfigError(f"--out {options.out} holds a comparison with runs of its own; choose another folder")


def base_of(options: Options) -> RunConfig:
    """Return the run file that all runs have in common.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    if options.paths and options.preset is not None:
        raise ConfigError("RUN.toml and --preset name two runs; give one of them")
    if options.paths:
        return load_run(options.paths[0], options.overrides)
    return preset(options.preset or _DEFAULT_PRESET, *options.overrides)


def grid_of(options: Options) -> Grid:
    """Return what is to be compared.

    Raises:
        ConfigError: an option cannot be read.
    """
    if options.tuning_draws and not options.tune:
        raise ConfigError("--tuning-draws does nothing without --tune; say what is to be chosen, or leave it out")
    return Grid(
        _names(options.methods) or (FedIT.name, DEFAULT),
        values_of(options.over, option="--over"),
        values_of(options.tune, option="--tune"),
        _names(options.references),
        options.draws or _DEFAULT_DRAWS,
        options.tuning_draws or _DEFAULT_TUNING_DRAWS,
    )


def values_of(texts: Sequence[str], *, option: str) -> Mapping[str, tuple[str, ...]]:
    """Return by key the values in `section.key=V1,V2`; a comma inside of brackets or quotes separates none.

    Raises:
        ConfigError: a text is of another form, or has a key or a value twice, however it is spelled.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key, taken = key.strip(), tuple(part.strip() for part in _split(values) if part.strip())
        if not equals or "." not in key or not taken:
            raise ConfigError(f"{option} is {text!r}; expected section.key=VALUE,VALUE ...")
        if key in found:
            raise ConfigError(f"{option} has {key} twice; expected it once, with all its values")
        for one, other in combinations(taken, 2):
            if is_one_value(one, other):
                raise ConfigError(f"{option} {key} has {one} and {other}, which are one value; expected it once")
        found[key] = taken
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _split(text: str) -> Iterator[str]:
    """Yield the parts between commas; what stands in quotes or brackets that begin a part is of that part."""
    part, depth, quote = "", 0, ""
    for character in text:
        if character == "," and not depth and not quote:
            yield part
            part = ""
            continue
        is_nested = depth > 0 or not part.strip()
        if quote:
            quote = "" if character == quote else quote
        elif is_nested and character in "\"'":
            quote = character
        elif is_nested and character in "[{":
            depth += 1
        elif depth and character in "]}":
            depth -= 1
        part += character
    yield part
