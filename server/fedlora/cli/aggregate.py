"""`fedlora aggregate`: from clients' PEFT folders to one folder, and what was lost on the way."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fedlora.adapters import Adapter, open_adapter, save_adapter, with_base_change_inside
from fedlora.adapters.alike import check_alike, check_savable, tensor_that_is_not_finite, with_one_origin
from fedlora.adapters.keys import to_state_dict
from fedlora.adapters.peft_format import CONFIG_FILE, TENSOR_FILE
from fedlora.aggregation import Aggregate, aggregate
from fedlora.aggregation.rank_limit import RankLimit, limit_rank
from fedlora.aggregation.updates import shares_of
from fedlora.cli.aggregation_options import clients_of, method_from, settings_of, settings_text, weights_from
from fedlora.cli.aggregation_view import diagnostics_table, explanations
from fedlora.cli.json_output import print_json
from fedlora.common.aggregation_report import AggregationReport
from fedlora.common.errors import AdapterError
from fedlora.common.files import require_free
from fedlora.methods import Method
from fedlora.server.report.wording import count_text, list_text, percent_text, share_text, size_text

_WIDTH_WITHOUT_TERMINAL = 100
_SAY_WHICH = "if they do, say which one with --base-model NAME"


@dataclass(frozen=True)
class Options:
    """What was typed."""

    folders: tuple[Path, ...]
    out: Path
    method: str
    settings: tuple[str, ...]
    weights: str | None
    rank: int | None
    as_json: bool
    base_model: str | None = None


@dataclass(frozen=True)
class Source:
    """A client's folder and its weight, as given."""

    folder: str
    weight: float


@dataclass(frozen=True)
class Aggregated:
    """What was done, as --json prints it.

    Attributes:
        method, settings: the method's name, and all its settings.
        adapters: by client name, where it came from.
        out: the folder that was written.
        smallest_rank, largest_rank: over its layers.
        num_tensors, size_bytes: of its tensor file.
        rank_limit: what --rank did; None without it.
        report: the diagnostics of the method's result, before any limit of the rank.
        base_model: the name that --base-model gave in place of the adapters' own; None without it.
    """

    method: str
    settings: Mapping[str, object]
    adapters: Mapping[str, Source]
    out: str
    smallest_rank: int
    largest_rank: int
    num_tensors: int
    size_bytes: int
    rank_limit: RankLimit | None
    report: AggregationReport
    base_model: str | None = None


def run_aggregate(options: Options) -> None:
    """Aggregate what was asked for, write it, and print what became of it.

    Raises:
        FedloraError: it cannot work; the caller prints why, and nothing was written.
    """
    method = method_from(options.method, options.settings)
    folders = clients_of(options.folders)
    weights = weights_from(options.weights, list(folders))
    require_free(options.out)
    adapters = {client: open_adapter(folder) for client, folder in folders.items()}
    check_alike(folders, adapters, base_model=options.base_model, remedy=_SAY_WHICH)
    result = _aggregated(folders, adapters, weights=weights, method=method)
    adapter = with_one_origin(with_base_change_inside(result.adapter), adapters, base_model=options.base_model)
    limit = None
    if options.rank is not None:
        adapter, limit = limit_rank(adapter, options.rank)
    check_savable(adapter, folders, adapters)
    with _nothing_left_on_failure(options.out):
        save_adapter(adapter, options.out)
    ranks = [layer.rank for layer in adapter.layers.values()]
    outcome = Aggregated(
        method=method.name,
        settings=settings_of(method),
        adapters={client: Source(str(folder), weights[client]) for client, folder in folders.items()},
        out=str(options.out),
        smallest_rank=min(ranks),
        largest_rank=max(ranks),
        num_tensors=len(to_state_dict(adapter)),
        size_bytes=(options.out / TENSOR_FILE).stat().st_size,
        rank_limit=limit,
        report=result.report,
        base_model=options.base_model,
    )
    if options.as_json:
        print_json(outcome)
    else:
        _print_outcome(outcome, method)


def _aggregated(
    folders: Mapping[str, Path], adapters: Mapping[str, Adapter], *, weights: Mapping[str, float], method: Method
) -> Aggregate:
    try:
        return aggregate(adapters, weights=weights, method=method)
    except AdapterError as error:
        # A file and a tensor say more than a client and a layer; the files are only searched where something is wrong.
        if found := tensor_that_is_not_finite(folders):
            raise AdapterError(found) from error
        raise


@contextmanager
def _nothing_left_on_failure(out: Path) -> Iterator[None]:
    """Remove what was written, and the folders that were made for it, if the body fails."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for file in (CONFIG_FILE, TENSOR_FILE):
            with suppress(OSError):
                (out / file).unlink()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def _print_outcome(outcome: Aggregated, method: Method) -> None:
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if is_sized else _WIDTH_WITHOUT_TERMINAL, highlight=False)
    shares = shares_of([source.weight for source in outcome.adapters.values()])
    clients = [f"{client} ({share_text(share)})" for client, share in zip(outcome.adapters, shares, strict=True)]
    names = list_text(clients, limit=8)
    settings = settings_text(method)
    console.print(
        Text.assemble((method.name, "bold"), f" ({settings})" if settings else "", " over ", names), soft_wrap=True
    )
    console.print()
    console.print(diagnostics_table(outcome.report, width=console.width))
    console.print()
    for words in explanations(outcome.report):
        console.print(Text(words, style="dim"))
    console.print()
    for name, words in _results(outcome, method):
        console.print(Text.assemble((f"{name:<8}", "dim"), words), soft_wrap=True)


def _results(outcome: Aggregated, method: Method) -> Iterator[tuple[str, str]]:
    yield "wrote", outcome.out
    if outcome.base_model is not None:
        yield "base", f"{outcome.base_model}, as --base-model says of all the adapters"
    ranks = f"{outcome.smallest_rank} to {outcome.largest_rank}"
    rank = str(outcome.largest_rank) if outcome.smallest_rank == outcome.largest_rank else ranks
    limit = outcome.rank_limit
    if method.changes_base and limit is None:
        most = method.base_change_rank
        rank += f", the change of the base weights included, {'exactly' if most is None else f'at most rank {most}'}"
    yield "rank", rank
    if limit is not None:
        if limit.num_layers:
            cut = f"{count_text(limit.num_layers, 'layer')} cut from rank {limit.rank_before} at most"
            yield "lost", f"{percent_text(limit.lost)} of the result's norm over all layers; {cut}"
        else:
            yield "lost", f"nothing; no layer has a rank above {limit.rank}"
    yield "size", f"{size_text(outcome.size_bytes)} ({outcome.size_bytes:,} bytes) in {outcome.num_tensors} tensors"
