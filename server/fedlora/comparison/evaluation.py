"""What the runs of a comparison say of each variant, and of its difference to the baseline. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fedlora.comparison.results import Comparison, RunResult, Variant
from fedlora.comparison.statistics import (
    SIGNIFICANCE,
    Interval,
    Sample,
    bca_interval,
    holm,
    sample,
    sign_flip_p,
    smallest_difference,
)
from fedlora.comparison.wording import is_lower_better


@dataclass(frozen=True)
class Difference:
    """The last metric less the baseline's, over the draws that both have.

    Attributes:
        by_draw: each draw's.
        values: their mean and spread.
        interval: BCa, of the mean.
        p, corrected_p: of sign flips, alone and by Holm's correction over all differences of the comparison.
        smallest: that so many draws with such a spread show with a power of 80 %, corrected for all differences of the
            comparison; None where they can show none, or have no interval.
    """

    by_draw: Mapping[int, float]
    values: Sample
    interval: Interval | None
    p: float
    corrected_p: float
    smallest: float | None

    @property
    def is_shown(self) -> bool:
        """Whether both the corrected test and the interval say that there is a difference."""
        return self.corrected_p <= SIGNIFICANCE and self.interval is not None and self.interval.excludes(0.0)


@dataclass(frozen=True)
class Cost:
    """What a variant's runs cost and reach on the mean; what no run has is None.

    Attributes:
        megabytes: sent in all.
        rounds_to_target, megabytes_to_target: of those runs that reach it.
        gain_per_megabyte: what the metric became better by from the start to the end, per megabyte sent.
        client_seconds, server_seconds: of all clients' training, and of aggregation and storing; medians, which a
            machine that was busy for a while moves less.
    """

    megabytes: Sample | None
    rounds_to_target: Sample | None
    megabytes_to_target: Sample | None
    gain_per_megabyte: Sample | None
    client_seconds: float | None
    server_seconds: float | None


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        runs: those that count, in the order of their draws.
        missing: the draws that others have and this has not, or only with a fault or without a score.
        metric: of the last round.
        worst_group, worst_client: each run's worst, averaged over the runs.
        groups: by name.
        clients: by name, or by their places from the worst to the best where names say nothing.
        error_before, error_after: of the average, each run's mean over its rounds.
        difference: to the baseline; none for the baseline itself, a reference, and without a common draw.
    """

    variant: Variant
    runs: tuple[RunResult, ...]
    missing: tuple[int, ...]
    metric: Sample | None
    worst_group: Sample | None
    worst_client: Sample | None
    groups: Mapping[str, Sample]
    clients: Mapping[str, Sample]
    cost: Cost
    error_before: Sample | None
    error_after: Sample | None
    difference: Difference | None


@dataclass(frozen=True)
class Evaluation:
    """All rows, and what they have in common.

    Attributes:
        methods: the baseline first, the others in the comparison's order.
        references: for scale; they are tested against nothing.
        target: of the metric, which rounds and megabytes are counted to; None without a run of the baseline.
        broken: the runs with a fault, which count for nothing.
        without_score: the runs whose last metric is not finite, which count for nothing.
    """

    comparison: Comparison
    methods: tuple[Row, ...]
    references: tuple[Row, ...]
    target: float | None
    broken: tuple[RunResult, ...]
    without_score: tuple[RunResult, ...]

    @property
    def baseline(self) -> Row:
        return self.methods[0]

    @property
    def differences(self) -> dict[str, Difference]:
        """The differences to the baseline by variant: the family that Holm's correction is over."""
        return {row.variant.name: row.difference for row in self.methods if row.difference is not None}


def evaluate(comparison: Comparison, *, target: float | None = None) -> Evaluation:
    """Return what the runs say.

    Args:
        target: of the metric; without it the baseline's mean in the last round.

    Raises:
        ValueError: the baseline is no method among the variants.
    """
    variants = sorted(comparison.variants, key=lambda variant: variant.name != comparison.baseline)
    if not variants or (variants[0].name, variants[0].kind) != (comparison.baseline, "method"):
        raise ValueError(f"the baseline {comparison.baseline} is none of the methods compared")
    counting = [run for run in comparison.runs if not run.fault and math.isfinite(last_metric(run))]
    by_variant = {
        variant.name: {run.draw: run for run in sorted(counting, key=_draw) if run.variant == variant.name}
        for variant in variants
    }
    baseline = by_variant[comparison.baseline]
    if target is None and (reached := sample([last_metric(run) for run in baseline.values()])):
        target = reached.mean
    differences = _differences(
        {variant.name: by_variant[variant.name] for variant in variants[1:] if variant.kind == "method"}, baseline
    )
    draws = {run.draw for run in comparison.runs}
    is_lower = is_lower_better(comparison.metric_name)

    def row(variant: Variant) -> Row:
        runs = by_variant[variant.name]
        missing = tuple(sorted(draws - set(runs)))
        return _row(
            variant, list(runs.values()), missing, target, differences.get(variant.name),
            is_lower=is_lower, names_clients=comparison.names_clients,
        )  # fmt: skip

    rows = [row(variant) for variant in variants]
    return Evaluation(
        comparison,
        tuple(row for row in rows if row.variant.kind == "method"),
        tuple(row for row in rows if row.variant.kind == "reference"),
        target,
        tuple(run for run in comparison.runs if run.fault),
        tuple(run for run in comparison.runs if not run.fault and not math.isfinite(last_metric(run))),
    )


def last_metric(run: RunResult) -> float:
    """Return the metric of the last round; nan where there is none."""
    return run.course.metric[-1] if run.course.metric else math.nan


def _differences(
    others: Mapping[str, Mapping[int, RunResult]], baseline: Mapping[int, RunResult]
) -> dict[str, Difference]:
    by_variant = {
        name: {draw: last_metric(run) - last_metric(baseline[draw]) for draw, run in runs.items() if draw in baseline}
        for name, runs in others.items()
    }
    p_values = {name: sign_flip_p(list(by_draw.values())) for name, by_draw in by_variant.items() if by_draw}
    corrected = holm(p_values)
    found = {}
    for name, p in p_values.items():
        differences = list(by_variant[name].values())
        if (values := sample(differences)) is not None:
            interval = bca_interval(differences)
            smallest = smallest_difference(values.deviation, values.num, num_tests=len(p_values)) if interval else None
            found[name] = Difference(by_variant[name], values, interval, p, corrected[name], smallest)
    return found


def _row(
    variant: Variant,
    runs: Sequence[RunResult],
    missing: tuple[int, ...],
    target: float | None,
    difference: Difference | None,
    *,
    is_lower: bool,
    names_clients: bool,
) -> Row:
    worst = max if is_lower else min
    return Row(
        variant,
        tuple(runs),
        missing,
        sample([last_metric(run) for run in runs]),
        sample([worst(scores) for run in runs if (scores := _finite(run.groups.values()))]),
        sample([worst(scores) for run in runs if (scores := _finite(run.clients.values()))]),
        _by_name(runs, lambda run: run.groups),
        _by_name(runs, lambda run: run.clients) if names_clients else _by_place(runs, is_lower=is_lower),
        _cost(runs, target, is_lower=is_lower),
        _mean_over_rounds(runs, lambda run: run.course.error_before),
        _mean_over_rounds(runs, lambda run: run.course.error_after),
        difference,
    )


def _cost(runs: Sequence[RunResult], target: float | None, *, is_lower: bool) -> Cost:
    sign = -1 if is_lower else 1
    reached = []
    for run in runs:
        metric = enumerate(run.course.metric)
        rounds = (at for at, value in metric if target is not None and sign * value >= sign * target)
        reached.append((run, next(rounds, None)))
    totals = [(run, run.course.megabytes[-1]) for run in runs if run.course.megabytes]
    return Cost(
        sample([total for _, total in totals]),
        sample([at for _, at in reached if at is not None]),
        sample([run.course.megabytes[at] for run, at in reached if at is not None and at < len(run.course.megabytes)]),
        sample([sign * (last_metric(run) - run.course.metric[0]) / total for run, total in totals if total > 0]),
        median([run.client_seconds for run in runs]) if runs else None,
        median([run.server_seconds for run in runs]) if runs else None,
    )


def _mean_over_rounds(runs: Sequence[RunResult], errors: Callable[[RunResult], Sequence[float]]) -> Sample | None:
    means = [sample(errors(run)) for run in runs]
    return sample([mean.mean for mean in means if mean is not None])


def _by_name(runs: Sequence[RunResult], scores: Callable[[RunResult], Mapping[str, float]]) -> dict[str, Sample]:
    names = sorted({name for run in runs for name in scores(run)})
    found = {name: sample([scores(run)[name] for run in runs if name in scores(run)]) for name in names}
    return {name: values for name, values in found.items() if values is not None}


def _by_place(runs: Sequence[RunResult], *, is_lower: bool) -> dict[str, Sample]:
    """Return the worst, the middle and the best of each run's clients, averaged over the runs."""
    of_runs = [sorted(scores, reverse=is_lower) for run in runs if (scores := _finite(run.clients.values()))]
    places: dict[str, Callable[[list[float]], float]] = {
        "the worst": lambda scores: scores[0],
        "the middle one": median,
        "the best": lambda scores: scores[-1],
    }
    found = {name: sample([of(scores) for scores in of_runs]) for name, of in places.items()}
    return {name: values for name, values in found.items() if values is not None}


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _draw(run: RunResult) -> int:
    return run.draw
