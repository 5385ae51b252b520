"""What a finished run gives to a comparison: its course by round, and where it ended."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlora.common.config import RunConfig
from fedlora.common.messages import Score
from fedlora.comparison.federates import goes_its_own_way
from fedlora.comparison.results import Course, RunResult
from fedlora.server.disk.store import RunFolder
from fedlora.server.record.best_round import validation_scores
from fedlora.server.record.round_report import RoundReport


def finished_reports(folder: Path, config: RunConfig) -> tuple[RoundReport, ...]:
    """Return the rounds of a run that is over; none of one that is not, or of which nothing is there."""
    if not folder.is_dir():
        return ()
    checkpoint = RunFolder(folder).latest()
    if checkpoint is None:
        return ()
    last = checkpoint.reports[-1]
    return tuple(checkpoint.reports) if last.round == config.federation.rounds or last.ended_early else ()


def result_of(reports: Sequence[RoundReport], *, variant: str, draw: int, folder: str) -> RunResult:
    """Return what the rounds of a run give; there is at least the start."""
    last = reports[-1]
    groups = {} if last.held_out is None else {name: score.metric for name, score in last.held_out.groups.items()}
    clients = {name: part.after.metric for name, part in last.clients.items() if part.after is not None}
    layers = {} if last.aggregation is None else last.aggregation.layers
    return RunResult(
        variant,
        draw,
        folder,
        course_of(reports),
        groups,
        clients,
        {name: (layer.error_before, layer.error_after) for name, layer in layers.items()},
        client_seconds=sum(part.seconds.get("training", 0.0) for each in reports for part in each.clients.values()),
        server_seconds=sum(each.seconds.get(phase, 0.0) for each in reports for phase in ("aggregation", "storing")),
        first_average=reports[1].adapter_sha256 if len(reports) > 1 else "",
        second_losses={name: part.loss for name, part in reports[2].clients.items()} if len(reports) > 2 else {},
        fault=goes_its_own_way(reports),
    )


def course_of(reports: Sequence[RoundReport]) -> Course:
    """Return what changes from round to round."""
    held_out = [None if report.held_out is None else report.held_out.overall for report in reports]
    aggregations = [report.aggregation for report in reports]
    moved, so_far = [], 0
    for report in reports:
        so_far += report.bytes_down + report.bytes_up
        moved.append(so_far / 1e6)
    return Course(
        metric=_values(held_out, "metric"),
        loss=_values(held_out, "loss"),
        validation=_by_round(validation_scores(reports), len(reports)),
        megabytes=tuple(moved),
        error_before=tuple(math.nan if found is None else found.error_before for found in aggregations),
        error_after=tuple(math.nan if found is None else found.error_after for found in aggregations),
    )


def last_validation_loss(reports: Sequence[RoundReport]) -> float:
    """Return the last adapter's loss on the clients' own validation examples; nan where nobody judged it."""
    score = validation_scores(reports).get(reports[-1].round)
    return math.nan if score is None else score.loss


def _values(scores: Sequence[Score | None], name: str) -> tuple[float, ...]:
    return tuple(math.nan if score is None else float(getattr(score, name)) for score in scores)


def _by_round(scores: Mapping[int, Score], num_rounds: int) -> tuple[float, ...]:
    return tuple(scores[number].loss if number in scores else math.nan for number in range(num_rounds))
