"""What is said of a comparison before any of its runs: data that could show nothing, settings that do nothing."""

from collections.abc import Mapping
from itertools import product

from fedlora.common.config import Occasion, RunConfig, idle_settings
from fedlora.common.errors import ConfigError
from fedlora.comparison.grid import Cell, Grid, combinations
from fedlora.comparison.results import Variant
from fedlora.comparison.wording import settings_text
from fedlora.server.report.wording import list_text
from fedlora.simulation.simulate import occasion_of
from fedlora.training.data import KeptParts, load_federated_data


def notes_beforehand(grid: Grid, base: RunConfig) -> tuple[str, ...]:
    """Return what is to be noted of the data and the settings of all runs, in a sentence each.

    Data are read once for all runs that have the same.

    Raises:
        ConfigError: no test examples are held out, or there are values to choose and nobody judges validation examples.
        DataError: data that cannot be used.
    """
    read = KeptParts()
    occasions: dict[str, Occasion] = {}
    said: dict[str, None] = {}
    idle: dict[str, dict[str, None]] = {}
    for variant, chosen in product(grid.variants(), combinations(grid.tuned)):
        config = Cell(variant, chosen, 0).config(base)
        asked = repr((config.data, config.task, config.partition))
        if asked not in occasions:
            data = load_federated_data(config, read=read)
            said |= dict.fromkeys(note.text for note in data.notes)
            occasions[asked] = occasion_of(data, has_given_data=False)
        occasion = occasions[asked]
        where = _where({**variant.settings, **chosen})
        _require_test(occasion, where)
        if grid.tuned:
            _require_validation(occasion, config, where)
        if variant.kind == "method":  # A reference has a method and settings of its own.
            for note in idle_settings(config, occasion):
                idle.setdefault(note, {})[variant.name] = None
    return *said, *_by_variant(idle, grid.variants())


def _require_test(occasion: Occasion, where: str) -> None:
    if not occasion.num_test:
        raise ConfigError(
            f"{where}no test examples are held out, and methods are compared by the metric on them; set data.test to "
            "the share to hold out, such as data.test=0.2, or to a file of them"
        )


def _require_validation(occasion: Occasion, config: RunConfig, where: str) -> None:
    found = ""
    if config.evaluation.client_examples == 0:
        found = "evaluation.client_examples is 0"
    elif not occasion.num_validation:
        found = f"data.validation = {config.data.validation:g} leaves no client any"
    if found:
        raise ConfigError(
            f"{where}--tune chooses by the clients' own validation examples, and no client judges any: {found}; set "
            "both above 0, or give the values to --over, which compares them"
        )


def _where(settings: Mapping[str, str]) -> str:
    return f"{settings_text(settings)}: " if settings else ""


def _by_variant(idle: Mapping[str, Mapping[str, None]], variants: list[Variant]) -> list[str]:
    """Return the notes; with the names of the variants that have one where others have it not."""
    num_methods = sum(variant.kind == "method" for variant in variants)
    return [
        note if len(names) == num_methods else f"{note} (in {list_text(list(names))})" for note, names in idle.items()
    ]
