"""What the report says of the aggregation's error."""

import math
from collections.abc import Sequence

from fedlora.common.aggregation_report import AggregationReport
from fedlora.methods import title_of
from fedlora.server.report.numbers import is_corrected
from fedlora.server.report.wording import count_text, error_texts, percent_text, significant
from fedlora.server.round_report import RoundReport


def about_aggregation(reports: Sequence[RoundReport]) -> list[str]:
    """Return how far plain averaging was off, and what the correction changed about it."""
    aggregations = [report.aggregation for report in reports if report.aggregation is not None]
    last = aggregations[-1]
    before, after = error_texts(last.error_before, last.error_after)
    notes = [f"Before averaging: {note}." for note in last.notes]
    meaning = (
        "Averaging A and B separately does not give the average of the clients' products B·A. The error is the "
        "distance between the two, relative to the size of that exact average."
    )
    if not is_corrected(reports):
        return [
            meaning,
            f"In the last round it was {before}. {title_of(last.method)} leaves it as it is.",
            _reach(last),
            *notes,
        ]
    lowered = sum(report.error_after < report.error_before for report in aggregations)
    raised = sum(report.error_after > report.error_before for report in aggregations)
    counted = f"It was smaller than before in {lowered} of {count_text(len(aggregations), 'round')}" + (
        f", and larger in {raised}." if raised else "."
    )
    name = title_of(last.method)
    removed = _share_removed(last.error_before, last.error_after)
    return [
        meaning,
        f"In the last round it was {before}, and {after} after {name}'s correction{removed}. {counted} "
        f"To get there, {_movements(last)}.",
        _reach(last),
        *notes,
        "A smaller error is not by itself a better model; for that, compare runs.",
    ]


def _movements(aggregation: AggregationReport) -> str:
    moved = [("B", aggregation.moved_B), ("A", aggregation.moved_A)]
    parts = [f"{factor} moved by {percent_text(share)} of its own norm" for factor, share in moved if share > 0]
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


def _share_removed(before: float, after: float) -> str:
    if not (math.isfinite(before) and math.isfinite(after) and before > 0):
        return ""
    share = 1 - after / before
    if share == 0:
        return ""
    return f" ({percent_text(abs(share))} {'less' if share > 0 else 'more'})"
