"""The part of a run's page on its rounds: the report's sections, curves by group, errors by layer and round."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fedlora.dashboard.known_run import KnownRun
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.aggregation import aggregation
from fedlora.server.report.clients import groups_and_clients
from fedlora.server.report.content import Section
from fedlora.server.report.drawing import Colour, score_axis
from fedlora.server.report.flagged import flagged
from fedlora.server.report.headline import refused
from fedlora.server.report.learning import learning
from fedlora.server.report.numbers import held_outs, metric_of
from fedlora.server.report.series_chart import Panel, Series, series_chart
from fedlora.server.report.sums import secure_sums
from fedlora.server.report.times import times
from fedlora.server.report.wording import capital, is_percentage, score_text, significant

_MOST_GROUPS = 10
_COLOURS = (Colour.BLUE, Colour.ORANGE, Colour.GREEN, Colour.PURPLE, Colour.GREY)
_MOST_LAYERS, _MOST_COLUMNS = 48, 40


@dataclass(frozen=True)
class Cell:
    """The error of a layer in a round: its place, how dark it is from 0 to 1, and what it says."""

    column: int
    row: int
    shade: str
    words: str


@dataclass(frozen=True)
class ErrorMap:
    """Errors of the average by layer, from above, and round, from the left."""

    layers: Sequence[str]
    rounds: Sequence[int]
    cells: Sequence[Cell]
    about: str


def on_learning(run: KnownRun) -> list[Section]:
    """Return what the report says of the scores and of the average, where there is something to say."""
    reports, name = run.reports, run.metric_name
    if not reports:
        return []
    found = (
        learning(reports, name, num_rounds=run.num_rounds),
        _by_group(reports, name),
        groups_and_clients(reports, name),
        aggregation(reports),
        secure_sums(reports),
    )
    return [each for each in found if each is not None]


def on_work(run: KnownRun) -> list[Section]:
    """Return what the report says of time, bytes and refusals, where there is something to say."""
    if not run.reports:
        return []
    found = times(run.reports, run.worked), refused(run.reports), flagged(run.reports)
    return [each for each in found if each is not None]


def error_map(run: KnownRun) -> ErrorMap | None:
    """Return the error that is left in each layer after each of the last rounds; nothing before there was an average.

    Of many layers those with the largest errors are shown, in the model's order.
    """
    by_round = {report.round: report.aggregation.layers for report in run.reports if report.aggregation is not None}
    rounds = sorted(by_round)[-_MOST_COLUMNS:]
    names = sorted({path for at in rounds for path in by_round[at]}, key=_by_number)
    errors = {
        (path, at): by_round[at][path].error_after
        for at in rounds
        for path in names
        if path in by_round[at] and math.isfinite(by_round[at][path].error_after)
    }
    if not errors:
        return None
    worst = _largest_by_layer(errors)
    kept = set(sorted(worst, key=lambda path: -worst[path])[:_MOST_LAYERS])
    layers = [path for path in names if path in kept]
    most = max(worst.values())
    largest = significant(most, 3)
    cells = [
        Cell(
            rounds.index(at), layers.index(path), f"{error / most if most else 0:.3f}",
            f"{path}, round {at}: {significant(error, 3)}",
        )
        for (path, at), error in errors.items()
        if path in kept
    ]  # fmt: skip
    about = f"The darker, the larger the error that is left in a layer after a round; the largest is {largest}."
    if len(names) > len(layers):
        about += f" The {len(layers)} of {len(names)} layers with the largest errors."
    if len(by_round) > len(rounds):
        about += f" The last {len(rounds)} of {len(by_round)} rounds."
    return ErrorMap(layers, rounds, cells, about)


def _by_number(path: str) -> list[tuple[int, str]]:
    """Return what layers are sorted by: block 2 comes before block 10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in path.split(".")]


def _largest_by_layer(errors: Mapping[tuple[str, int], float]) -> dict[str, float]:
    found: dict[str, float] = {}
    for (path, _), error in errors.items():
        found[path] = max(found.get(path, 0.0), error)
    return found


def _by_group(reports: Sequence[RoundReport], metric_name: str) -> Section | None:
    """Return the held-out metric of each group by round; of many groups of those that are worst at the end."""
    scores = {at: held_out.groups for at, held_out in held_outs(reports).items()}
    last = scores[max(scores)] if scores else {}
    if len(last) < 2 or len(scores) < 2:
        return None
    drawn = sorted(last, key=lambda group: metric_of(last[group]))[:_MOST_GROUPS]
    series = [
        Series(
            group or "(no name)",
            {at: metric_of(groups[group]) for at, groups in scores.items() if group in groups},
            _COLOURS[place % len(_COLOURS)],
            dot=5.0,
        )
        for place, group in enumerate(sorted(drawn))
    ]
    title = f"{capital(metric_name)} by group and round"
    worst = drawn[0]
    about = (
        f"Lowest in the last judged round: {worst or '(no name)'}, {score_text(metric_of(last[worst]), metric_name)}."
    )
    if len(last) > len(drawn):
        about += f" The {len(drawn)} of {len(last)} groups that are lowest are drawn."
    panel = Panel(series, partial(score_axis, metric_name=metric_name), is_percentage=is_percentage(metric_name))
    chart = series_chart(title, panel, description=f"{title}. {about}")
    return Section("Group by group", [[about]], [chart], layout="whole")
