"""The report's section on the aggregation's error: of plain averaging, and what the method changed about it."""

import math
from collections.abc import Mapping, Sequence

from fedlora.common.aggregation_report import AggregationReport, LayerReport
from fedlora.methods import title_of
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.content import Chart, Columns, Section, table
from fedlora.server.report.drawing import Colour, amount_axis, percent_axis
from fedlora.server.report.layers import by_module
from fedlora.server.report.numbers import is_corrected, moved, moved_factor
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.wording import count_text, error_texts, percent_text, significant

# So many modules are drawn, those with the largest errors.
_MOST_MODULES = 8

_LAYER_COLUMNS: Columns[tuple[str, LayerReport]] = (
    ("layer", lambda layer: layer[0]),
    ("size of the update", lambda layer: significant(layer[1].update_norm, 3)),
    ("error before", lambda layer: significant(layer[1].error_before, 4)),
    ("after", lambda layer: significant(layer[1].error_after, 4)),
    ("least of this rank", lambda layer: significant(layer[1].floor, 4)),
    ("B could remove", lambda layer: percent_text(layer[1].reach_B)),
    ("A could remove", lambda layer: percent_text(layer[1].reach_A)),
    ("B moved", lambda layer: percent_text(layer[1].moved_B)),
    ("A moved", lambda layer: percent_text(layer[1].moved_A)),
    ("effective rank", lambda layer: f"{layer[1].effective_rank:.1f}"),
)


def aggregation(reports: Sequence[RoundReport]) -> Section | None:
    """Return the error of plain averaging and what the correction left of it; nothing before there was an average."""
    measured = {report.round: report.aggregation for report in reports if report.aggregation is not None}
    if not measured:
        return None
    last, corrected = max(measured), is_corrected(reports)
    meaning = (
        "Averaging A and B separately does not give the average of the clients' products B·A. The error is the "
        "distance between the two, relative to the size of that exact average."
    )
    about = _about(list(measured.values()), corrected=corrected)
    charts = [_errors(measured, corrected=corrected, description=about[0])]
    if corrected:
        charts.append(_correction(measured))
    layers = measured[last].layers
    return Section(
        "Error of the average",
        [[meaning], about],
        charts,
        parts=[_layers(layers, last, corrected=corrected)] if layers else [],
    )


def _errors(measured: Mapping[int, AggregationReport], *, corrected: bool, description: str) -> Chart:
    before = {at: each.error_before for at, each in measured.items()}
    after = {at: each.error_after for at, each in measured.items()}
    series = (
        # Wider, to be seen where the other covers it.
        Series("plain averaging", before, Colour.ORANGE, width=4, dot=9.6),
        Series("after the correction", after if corrected else {}, Colour.BLUE),
    )
    panel = Panel(series, amount_axis, name="error / size of the exact average")
    return series_chart("Error by round", panel, description=description)


def _correction(measured: Mapping[int, AggregationReport]) -> Chart:
    """Return what share of the error the correction removed, and how far it moved A or B for that, over the rounds."""
    factor = moved_factor(measured.values())
    removed = {
        at: 1 - each.error_after / each.error_before if each.error_before > 0 else math.nan
        for at, each in measured.items()
    }
    movements = {at: moved(each, factor) for at, each in measured.items()}
    panels = (
        Panel([Series("", values, colour)], percent_axis, title=title, is_bars=True, is_percentage=True)
        for values, colour, title in (
            (removed, Colour.BLUE, "error removed"),
            (movements, Colour.PURPLE, f"{factor} moved, of its norm"),
        )
    )
    description = "By round, what share of the error the correction removed, and how far it moved A or B."
    return series_chart("What the correction did, by round", *panels, description=description)


def _layers(layers: Mapping[str, LayerReport], at: int, *, corrected: bool) -> Section:
    """Return the layers of round `at`: charts by module on one scale, and a table."""
    modules = by_module(layers)
    worst = sorted(modules, key=lambda name: -max(_sortable(layers[path].error_before) for path in modules[name]))
    drawn = [name for name in modules if name in worst[:_MOST_MODULES]]
    shown = [layers[path] for name in drawn for path in modules[name]]
    factor = moved_factor(layers.values())
    limits = (
        [error for layer in shown for error in (layer.error_before, layer.error_after)],
        [moved(layer, factor) for layer in shown],
    )
    charts = []
    for name in drawn:
        blocks = {block: layers[path] for path, block in modules[name].items()}
        charts.append(_module_chart(name, blocks, factor if corrected else "", limits))
    largest = max(layers, key=lambda path: layers[path].error_after)
    about = [
        f"The largest error of {len(layers)} layers is left in {largest}: "
        f"{significant(layers[largest].error_after, 3)}.",
        f"The {_MOST_MODULES} of {len(modules)} modules with the largest error are drawn."
        if len(modules) > len(drawn)
        else "",
    ]
    return Section(
        f"By layer, in round {at}",
        [about],
        charts,
        has_one_legend=True,
        table=table("Layers", _LAYER_COLUMNS, list(layers.items())),
        summary="Every layer in numbers",
    )


def _module_chart(
    name: str, blocks: Mapping[int, LayerReport], factor: str, limits: tuple[Sequence[float], Sequence[float]]
) -> Chart:
    """Return each block's error, and where a factor was moved, the error after that and how far it was moved."""
    worst = max(blocks, key=lambda block: _sortable(blocks[block].error_after))
    description = (
        f"{name}: error of the average in {len(blocks)} blocks; the largest, "
        f"{significant(blocks[worst].error_after, 3)}, is in block {worst}."
    )
    before = {block: layer.error_before for block, layer in blocks.items()}
    if not factor:
        dots = Series("plain averaging", before, Colour.ORANGE, width=0)
        panel = Panel([dots], amount_axis, limits=limits[0], name="error")
        return series_chart(name, panel, description=description, places="block of the model", height=170)
    after = {block: layer.error_after for block, layer in blocks.items()}
    movements = {block: moved(layer, factor) for block, layer in blocks.items()}
    errors = (
        Series("plain averaging", before, Colour.ORANGE, width=0, dot=8, rings=list(blocks)),
        Series("after the correction", after, Colour.BLUE, width=0),
    )
    bars = Series(f"{factor} moved, of its norm", movements, Colour.PURPLE)
    return series_chart(
        name,
        Panel(errors, amount_axis, limits=limits[0], name="error", stems=Colour.GREY, share=2.2),
        Panel([bars], percent_axis, limits=limits[1], name=f"{factor} moved", is_bars=True, is_percentage=True),
        description=description,
        places="block of the model",
        height=250,
    )


def _about(measured: Sequence[AggregationReport], *, corrected: bool) -> list[str]:
    """Return how far plain averaging was off in the last round, and what the correction changed about it."""
    last = measured[-1]
    before, after = error_texts(last.error_before, last.error_after)
    notes = [f"Before averaging: {note}." for note in last.notes]
    name = title_of(last.method)
    if not corrected:
        return [f"In the last round it was {before}. {name} leaves it as it is.", _reach(last), *notes, _stepped(last)]
    lowered = sum(each.error_after < each.error_before for each in measured)
    raised = sum(each.error_after > each.error_before for each in measured)
    larger = f", and larger in {raised}" if raised else ""
    return [
        f"In the last round it was {before}, and {after} after {name}'s correction"
        f"{_share_removed(last.error_before, last.error_after)}. It was smaller than before in {lowered} of "
        f"{count_text(len(measured), 'round')}{larger}. To get there, {_movements(last)}.",
        _reach(last),
        *notes,
        _stepped(last),
        "A smaller error is not by itself a better model; for that, compare runs.",
    ]


def _movements(aggregation: AggregationReport) -> str:
    shares = [("B", aggregation.moved_B), ("A", aggregation.moved_A)]
    parts = [f"{factor} moved by {percent_text(share)} of its own norm" for factor, share in shares if share > 0]
    return " and ".join(parts) or "neither A nor B moved: the difference went into the base weights"


def _reach(aggregation: AggregationReport) -> str:
    """Return how much any correction could have done."""
    if not 0 < aggregation.error_before < math.inf:
        return ""
    return (
        f"The best pair of this rank has an error of {significant(aggregation.floor, 3)}. Of the error of plain "
        f"averaging, the best B alone would remove {percent_text(aggregation.reach_B)}, the best A alone "
        f"{percent_text(aggregation.reach_A)}, both together {percent_text(aggregation.reach_both)}."
    )


def _stepped(aggregation: AggregationReport) -> str:
    """Return how far the server's optimiser went, where there was one."""
    if (step := aggregation.server_step) is None:
        return ""
    return (
        f"Then the server's optimiser stepped ({step.optimizer}, on the {step.acts_on}): in the last round the "
        f"products of A and B moved {significant(step.reach, 3)} times as far from the round's start as by the method "
        "alone, whose errors these are."
    )


def _share_removed(before: float, after: float) -> str:
    if not (math.isfinite(before) and math.isfinite(after) and before > 0) or after == before:
        return ""
    share = 1 - after / before
    return f" ({percent_text(abs(share))} {'less' if share > 0 else 'more'})"


def _sortable(value: float) -> float:
    return value if math.isfinite(value) else 0.0
