"""What is compared: variants, a method with settings each, at draws; and which run of the run file each of them is.

Pure, but for the reading of settings as the run file's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from urllib.parse import quote

from fedlora.common.codec import Codec
from fedlora.common.config import RunConfig
from fedlora.common.errors import ConfigError
from fedlora.common.method_names import method_points
from fedlora.common.run_file import parse_run, toml_value
from fedlora.comparison.results import Variant

CENTRALISED, LOCAL_ONLY, HEAD_ONLY = "centralised", "local_only", "head_only"
REFERENCES = (CENTRALISED, LOCAL_ONLY, HEAD_ONLY)

# No disk takes names of more than 255 bytes.
_MOST_NAME = 200

# What a comparison itself sets for each run.
_OWN_KEYS = ("aggregation.method", "partition.seed", "run.seed", "run.name")


@dataclass(frozen=True)
class Grid:
    """What was asked for.

    Attributes:
        methods: of aggregation, in the order of the tables; the first is the baseline.
        over: by key the values that are compared, as they would be typed.
        tuned: by key the values of which each variant takes what is best on the clients' validation.
        references: of `REFERENCES`, tuned as the methods are.
        num_draws: runs of each variant; draw d takes the seeds of partition, first adapter and batches d higher.
        num_tuning_draws: the first so many are those by which values are chosen.
    """

    methods: tuple[str, ...]
    over: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tuned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    num_draws: int = 10
    num_tuning_draws: int = 1

    def variants(self) -> list[Variant]:
        """Return all that is compared: methods in their order, each with every combination of `over`; then references.

        What a variant chooses among, `tuned`, is not in its settings.
        """
        methods = [
            Variant(variant_name(method, settings), method, settings)
            for method in self.methods
            for settings in combinations(self.over)
        ]
        return methods + [Variant(name, name, kind="reference") for name in self.references]


CODEC = Codec(Grid)


@dataclass(frozen=True)
class Cell:
    """One run: a variant with one choice of what is tuned, at one draw."""

    variant: Variant
    chosen: Mapping[str, str]
    draw: int

    @cached_property
    def folder(self) -> str:
        """Where it lies, relative to the comparison's folder."""
        parts = [self.variant.name.replace(", ", "+"), *(f"{key}={value}" for key, value in self.chosen.items())]
        name = quote("+".join(parts), safe="+=., _-")
        if len(name) > _MOST_NAME:
            name = f"{name[:_MOST_NAME]}-{sha256(name.encode()).hexdigest()[:16]}"
        return f"runs/{name}/draw-{self.draw:02d}"

    def config(self, base: RunConfig) -> RunConfig:
        """Return the run file of this cell.

        Raises:
            ConfigError: a setting is wrong, or does not go with another.
        """
        method = self.variant.method
        # References have plain averages of their own, see `cells`.
        named = {} if self.variant.kind == "reference" else {"aggregation.method": method}
        seeds = {"partition.seed": str(base.data_seed + self.draw), "run.seed": str(base.run.seed + self.draw)}
        settings = {**named, **self.variant.settings, **self.chosen, **seeds}
        return parse_run(base.model_dump(mode="json"), [f"{key}={value}" for key, value in settings.items()])


def tuning_cells(grid: Grid) -> Iterator[Cell]:
    """Yield the runs by which values are chosen; none where nothing is tuned."""
    for draw, variant, chosen in product(range(_num_tuning_draws(grid)), grid.variants(), combinations(grid.tuned)):
        yield Cell(variant, chosen, draw)


def final_cells(grid: Grid, chosen: Mapping[str, Mapping[str, str]]) -> Iterator[Cell]:
    """Yield the runs that are compared, draw by draw, given by variant's name the values that were chosen."""
    for draw, variant in product(range(grid.num_draws), grid.variants()):
        yield Cell(variant, chosen.get(variant.name, {}), draw)


def what_lacks(grid: Grid, before: Grid) -> str:
    """Return what `before` has that `grid` has not, in words; "" where all of its runs have a place in `grid`."""
    for option, there, here in (
        ("--methods", before.methods, grid.methods),
        ("--references", before.references, grid.references),
    ):
        if missing := [name for name in there if name not in here]:
            return f"with {option} {','.join(there)}: {missing[0]} is not among those here"
    for option, of_keys, here_of in (("--over", before.over, grid.over), ("--tune", before.tuned, grid.tuned)):
        if of_keys.keys() != here_of.keys():
            return f"with {option} {_keys(of_keys)}, here {_keys(here_of)}"
        for key, values in of_keys.items():
            if missing := [value for value in values if not _spellings(value, here_of[key])]:
                return f"with {option} {key}={','.join(values)}: {missing[0]} is not among those here"
    for option, num_there, num_here in (
        ("--draws", before.num_draws, grid.num_draws),
        ("--tuning-draws", _num_tuning_draws(before), _num_tuning_draws(grid)),
    ):
        if num_here < num_there:
            return f"with {option} {num_there}, here {num_here}"
    return ""


def _num_tuning_draws(grid: Grid) -> int:
    return min(grid.num_tuning_draws, grid.num_draws) if grid.tuned else 0


def spelled_as(grid: Grid, before: Grid) -> Grid:
    """Return a grid that has all that `before` has, with keys in its order and values in its words: so are folders."""
    return replace(grid, over=_spelled_as(grid.over, before.over), tuned=_spelled_as(grid.tuned, before.tuned))


def _spelled_as(
    values: Mapping[str, tuple[str, ...]], before: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    return {key: tuple(next(iter(_spellings(value, before[key])), value) for value in values[key]) for key in before}


def is_one_value(one: str, other: str) -> bool:
    """Return whether two texts of a value, as they would be typed, give a key the same."""
    return toml_value(one) == toml_value(other)


def _spellings(value: str, among: Sequence[str]) -> list[str]:
    return [other for other in among if is_one_value(value, other)]


def _keys(values: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(values) or "of nothing"


def combinations(values: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return every combination of one value for each key; one empty one where there is no key."""
    return [dict(zip(values, taken, strict=True)) for taken in product(*values.values())]


def require_usable(grid: Grid, base: RunConfig) -> None:
    """Check that every run of a grid has a run file that can be used.

    Raises:
        ConfigError: a method that there is not, a key that is given twice or is the comparison's own, too few draws, or
            a setting that is wrong.
    """
    known = method_points()
    for method in grid.methods:
        if method not in known:
            raise ConfigError(f"--methods: there is no method {method!r}; there are {', '.join(known)}")
    for names, option in ((grid.methods, "--methods"), (grid.references, "--references")):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{option} has {twice[0]} twice; expected it once")
    for name in grid.references:
        if name not in REFERENCES:
            raise ConfigError(f"--references: there is no {name!r}; there are {', '.join(REFERENCES)}")
    if shared := sorted(grid.over.keys() & grid.tuned.keys()):
        raise ConfigError(f"{shared[0]} is both compared (--over) and chosen (--tune); give it once")
    for key in (*grid.over, *grid.tuned):
        if key in _OWN_KEYS:
            raise ConfigError(f"{key} is what the comparison sets for each run; name methods and draws instead")
    if not grid.methods:
        raise ConfigError("--methods names none; expected one at least")
    for variant, chosen in product(grid.variants(), combinations(grid.tuned)):
        Cell(variant, chosen, 0).config(base)


def variant_name(method: str, settings: Mapping[str, str]) -> str:
    """Return how runs and tables name a method with settings."""
    return ", ".join([method, *(f"{key}={value}" for key, value in settings.items())])
