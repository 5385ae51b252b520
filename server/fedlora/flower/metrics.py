"""The clients' metrics before they are averaged: one client's NaN, or a metric that it alone has, spoils no mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import MetricRecord, RecordDict

Metric = int | float | list[int] | list[float]


@dataclass(frozen=True, eq=False)
class Averageable:
    """What Flower's averages can take of the clients' metrics.

    Attributes:
        contents: the clients' records with those metrics only that all have, in one shape and finite.
        means: by name, the weighted mean of a metric over the clients whose value is finite, where some have another.
        left_out: in words, what no mean holds, or not from every client.
    """

    contents: Sequence[RecordDict]
    means: Mapping[str, float | list[float]]
    left_out: Sequence[str]


def averageable(contents: Sequence[tuple[int, RecordDict]], *, weighted_by: str) -> Averageable:
    """Return what can be averaged of the metrics in each node's only MetricRecord.

    Args:
        contents: node ids with the records, each with a finite, positive weight under `weighted_by`.
    """
    metrics = {node: dict(_metrics(content)) for node, content in contents}
    shapes = [{name: _shape(value) for name, value in own.items()} for own in metrics.values()]
    common = {name for name, shape in shapes[0].items() if all(own.get(name) == shape for own in shapes)}
    odd = sorted({name for own in metrics.values() for name in own} - common)
    left_out = [f"{name} has no mean: not all nodes have it, in one shape" for name in odd]
    means: dict[str, float | list[float]] = {}
    for name in sorted(common):
        spoiled = {node: own[name] for node, own in metrics.items() if not _is_finite(own[name])}
        if not spoiled:
            continue
        common.remove(name)
        left_out += [
            f"{name} of node {node} is {value}, and is left out of the mean" for node, value in spoiled.items()
        ]
        values = [(own[weighted_by], own[name]) for node, own in metrics.items() if node not in spoiled]
        if values:
            means[name] = _mean(values)
    return Averageable([_with_only(content, common) for _, content in contents], means, left_out)


def _with_only(content: RecordDict, names: set[str]) -> RecordDict:
    (key,) = content.metric_records
    kept = {name: value for name, value in _metrics(content).items() if name in names}
    if len(kept) == len(_metrics(content)):
        return content
    return RecordDict({**content, key: MetricRecord(kept)})


def _mean(values: Sequence[tuple[Metric, Metric]]) -> float | list[float]:
    """Return the mean of numbers, or of lists of one length, each behind its weight."""
    weights = [float(weight) for weight, _ in values if not isinstance(weight, list)]
    total = math.fsum(weights)
    rows = [value if isinstance(value, list) else [value] for _, value in values]
    mean = [
        math.fsum(w / total * v for w, v in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)
    ]
    return mean if isinstance(values[0][1], list) else mean[0]


def _metrics(content: RecordDict) -> MetricRecord:
    return next(iter(content.metric_records.values()))


def _is_finite(value: Metric) -> bool:
    return all(math.isfinite(number) for number in (value if isinstance(value, list) else [value]))


def _shape(value: Metric) -> int:
    return len(value) if isinstance(value, list) else -1
