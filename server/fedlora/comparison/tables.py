"""The tables that every output of a comparison shows. Pure."""

from collections.abc import Callable, Iterable, Mapping

from fedlora.comparison.evaluation import Difference, Evaluation, Row, last_metric
from fedlora.comparison.results import Variant
from fedlora.comparison.statistics import Sample, sample
from fedlora.comparison.wording import (
    amount_text,
    interval_text,
    mean_text,
    of_runs_text,
    p_text,
    settings_text,
    signed_text,
    unit_of,
)
from fedlora.server.report.content import Columns, Table, table
from fedlora.server.report.wording import (
    UNKNOWN,
    capital,
    duration_text,
    is_percentage,
    percent_text,
    score_text,
    significant,
)

# So small a share of an error is float32's.
_ROUNDING = 1e-6


def scores(evaluation: Evaluation, *, of_references: bool = False) -> Table:
    """Return each variant's last metric: mean, spread, worst group and worst client; or each reference's."""
    name = evaluation.comparison.metric_name
    columns: Columns[Row] = (
        ("variant", lambda row: row.variant.name),
        ("draws", lambda row: str(len(row.runs))),
        ("mean", lambda row: mean_text(row.metric, name)),
        ("spread", lambda row: UNKNOWN if row.metric is None else amount_text(row.metric.deviation, name)),
        ("worst group", lambda row: mean_text(row.worst_group, name)),
        ("worst client", lambda row: mean_text(row.worst_client, name)),
    )
    if any(row.variant.chosen for row in evaluation.methods):
        columns = (*columns, ("chosen", lambda row: _chosen(row.variant)))
    rows = evaluation.references if of_references else evaluation.methods
    caption = f"{capital(name)} after the last round"
    return table(f"References: {name}, for scale and not tested" if of_references else caption, columns, rows)


def differences(evaluation: Evaluation) -> Table:
    """Return each variant's paired difference to the baseline, with what the draws say of it."""
    name = evaluation.comparison.metric_name
    columns: Columns[tuple[str, Difference]] = (
        ("variant", lambda row: row[0]),
        ("pairs", lambda row: str(row[1].values.num)),
        ("difference", lambda row: signed_text(row[1].values.mean, name)),
        ("spread", lambda row: amount_text(row[1].values.deviation, name)),
        ("95 % interval", lambda row: interval_text(row[1].interval, name)),
        ("p", lambda row: p_text(row[1].p)),
        ("p by Holm", lambda row: p_text(row[1].corrected_p)),
        ("smallest that can be shown", lambda row: amount_text(row[1].smallest, name)),
        ("shown", lambda row: "yes" if row[1].is_shown else "no"),
    )
    caption = f"Difference to {evaluation.comparison.baseline}, paired by draw, in {unit_of(name)}"
    return table(caption, columns, list(evaluation.differences.items()))


def costs(evaluation: Evaluation) -> Table:
    """Return what each variant sends and computes, and when it reaches the target."""
    name = evaluation.comparison.metric_name
    factor = 100 if is_percentage(name) else 1
    per_megabyte = f"{unit_of(name)} per MB" if is_percentage(name) else f"gain in {name} per MB"
    columns: Columns[Row] = (
        ("variant", lambda row: row.variant.name),
        ("MB sent", lambda row: _mean(row.cost.megabytes)),
        ("rounds to target", lambda row: of_runs_text(row.cost.rounds_to_target, len(row.runs))),
        ("MB to target", lambda row: of_runs_text(row.cost.megabytes_to_target, len(row.runs))),
        (per_megabyte, lambda row: _mean(row.cost.gain_per_megabyte, factor=factor)),
        ("clients' time", lambda row: _duration(row.cost.client_seconds)),
        ("server's time", lambda row: _duration(row.cost.server_seconds)),
    )
    target = "" if evaluation.target is None else f", target {score_text(evaluation.target, name)}"
    return table(f"Cost of a run{target}", columns, evaluation.methods)


def errors(evaluation: Evaluation) -> Table | None:
    """Return the error of the average before and after each method's correction; nothing where it was not measured."""
    rows = [row for row in evaluation.methods if row.error_before is not None]
    columns: Columns[Row] = (
        ("variant", lambda row: row.variant.name),
        ("before", lambda row: _mean(row.error_before)),
        ("after", lambda row: _mean(row.error_after)),
        ("removed", _removed),
    )
    return table("Error of the average, mean over rounds", columns, rows, is_narrow=True) if rows else None


def layer_errors(evaluation: Evaluation) -> Table | None:
    """Return by layer the error that each method leaves in the last round, and in brackets that before it."""
    by_variant = {row.variant.name: layer_means(row) for row in evaluation.methods}
    by_variant = {name: layers for name, layers in by_variant.items() if layers}
    paths = list(dict.fromkeys(path for layers in by_variant.values() for path in layers))

    def texts(name: str) -> Callable[[str], str]:
        return lambda path: _before_and_after(by_variant[name].get(path))

    columns: Columns[str] = (("layer", str), *((name, texts(name)) for name in by_variant))
    return table("Error by layer in the last round, after (before)", columns, paths) if paths else None


def groups(evaluation: Evaluation) -> Table | None:
    """Return each variant's mean metric by group of the test set; nothing where there are none."""
    return _by_name("group", "by group of the test set", evaluation, lambda row: row.groups)


def clients(evaluation: Evaluation) -> Table | None:
    """Return each variant's mean metric by client, on the client's own validation; nothing where there is none.

    Where other draws have other clients, a run's are told by their places.
    """
    which = "" if evaluation.comparison.names_clients else ", of each run's clients by their places"
    what = f"on each client's own validation examples{which}"
    return _by_name("client", what, evaluation, lambda row: row.clients)


def draws(evaluation: Evaluation) -> Table:
    """Return the last metric of every run that counts, by draw."""
    name = evaluation.comparison.metric_name
    rows = (*evaluation.methods, *evaluation.references)
    by_variant = {row.variant.name: {run.draw: last_metric(run) for run in row.runs} for row in rows}
    numbers = sorted({draw for values in by_variant.values() for draw in values})

    def texts(variant: str) -> Callable[[int], str]:
        return lambda draw: score_text(by_variant[variant].get(draw), name)

    columns: Columns[int] = (("draw", str), *((variant, texts(variant)) for variant in by_variant))
    return table(f"{capital(name)} of every run after the last round", columns, numbers)


def settings(evaluation: Evaluation) -> Table:
    """Return what each variant is, and which of its settings were chosen from which values."""
    columns: Columns[Variant] = (
        ("variant", lambda variant: variant.name),
        ("method", lambda variant: variant.method),
        ("settings", lambda variant: settings_text(variant.settings) or UNKNOWN),
        ("chosen", lambda variant: _joined(f"{key} of {', '.join(values)}" for key, values in variant.chosen.items())),
    )
    return table("Variants", columns, evaluation.comparison.variants, num_text_columns=4)


def layer_means(row: Row) -> dict[str, tuple[float, float]]:
    """Return by layer the error before and after in the last round, averaged over the runs, in the runs' order."""
    paths = dict.fromkeys(path for run in row.runs for path in run.layer_errors)
    found = {}
    for path in paths:
        pairs = [run.layer_errors[path] for run in row.runs if path in run.layer_errors]
        before, after = (sample([pair[place] for pair in pairs]) for place in (0, 1))
        if before is not None and after is not None:
            found[path] = before.mean, after.mean
    return found


def _by_name(
    noun: str, what: str, evaluation: Evaluation, scores: Callable[[Row], Mapping[str, Sample]]
) -> Table | None:
    """Return a row for each name and a column for each variant, references among them."""
    rows = [row for row in (*evaluation.methods, *evaluation.references) if scores(row)]
    names = list(dict.fromkeys(name for row in rows for name in scores(row)))
    metric_name = evaluation.comparison.metric_name

    def texts(row: Row) -> Callable[[str], str]:
        return lambda name: mean_text(scores(row).get(name), metric_name)

    columns: Columns[str] = ((noun, str), *((row.variant.name, texts(row)) for row in rows))
    return table(f"Mean {metric_name} {what}", columns, names) if names else None


def _mean(values: Sample | None, *, factor: float = 1) -> str:
    return UNKNOWN if values is None else significant(factor * values.mean, 3)


def _chosen(variant: Variant) -> str:
    return _joined(f"{key.rpartition('.')[2]} {variant.settings[key]}" for key in variant.chosen)


def _duration(seconds: float | None) -> str:
    return duration_text(seconds) if seconds else UNKNOWN


def _removed(row: Row) -> str:
    if row.error_before is None or row.error_after is None or not row.error_before.mean > 0:
        return UNKNOWN
    removed = 1 - row.error_after.mean / row.error_before.mean
    return percent_text(removed if abs(removed) > _ROUNDING else 0.0)


def _before_and_after(errors: tuple[float, float] | None) -> str:
    return UNKNOWN if errors is None else f"{significant(errors[1], 3)} ({significant(errors[0], 3)})"


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(texts) or UNKNOWN
