"""The report's sections, each a heading, sentences, charts and tables; or nothing where the run has nothing to show."""

from collections.abc import Mapping, Sequence

from fedlora.common.aggregation_report import LayerReport
from fedlora.server.report import sentences
from fedlora.server.report.aggregation_charts import (
    MOST_MODULES,
    correction_by_round,
    error_by_layer,
    error_by_round,
)
from fedlora.server.report.aggregation_sentences import about_aggregation
from fedlora.server.report.layers import by_module
from fedlora.server.report.local_training import tokens_by_client
from fedlora.server.report.markup import (
    NOTHING,
    Html,
    details,
    element,
    figure,
    join,
    legend,
    paragraph,
    section,
    table,
)
from fedlora.server.report.numbers import (
    as_perplexity,
    client_names,
    client_seconds,
    client_spread,
    is_corrected,
    is_of_tokens,
    judged,
    loss_of,
    mean_loss,
    moved_factor,
    overall_gain,
    perplexity,
    refusals,
    round_seconds,
    trained,
    wall_seconds,
)
from fedlora.server.report.score_charts import loss_by_round, perplexity_by_round, score_by_round
from fedlora.server.report.time_charts import phase_keys, time_by_round, time_in_clients
from fedlora.server.report.validation import (
    about_best,
    about_early_end,
    best_of,
    validation_by_round,
)
from fedlora.server.report.wording import (
    PERPLEXITY,
    UNKNOWN,
    amount_text,
    count_text,
    duration_text,
    gain_text,
    is_percentage,
    loss_text,
    percent_text,
    ranges_text,
    reason_text,
    score_text,
    significant,
    size_text,
)
from fedlora.server.round_report import RoundReport


def learning(reports: Sequence[RoundReport], metric_name: str, *, num_rounds: int) -> Html:
    """Return the learning curves."""
    rounds = trained(reports)
    if not rounds:
        return NOTHING
    about_loss = sentences.about_loss(reports)
    validates = bool(validation_by_round(reports))
    on_validation = [("line green", "the averaged adapter on the clients' validation")] if validates else []
    loss_keys = [*_loss_keys(reports), *on_validation]
    charts = [figure("Loss by round", loss_by_round(reports, description=about_loss), keys=loss_keys)]
    about_perplexity = ""
    held_out_key = [("line blue", "held-out")] if judged(reports) else []
    if is_of_tokens(reports) and (held_out_key or on_validation):
        about_perplexity = sentences.about_perplexity(reports)
        chart = perplexity_by_round(reports, description=about_perplexity)
        charts.insert(0, figure("Perplexity by round", chart, keys=[*held_out_key, *on_validation]))
    about_scores = sentences.about_scores(reports, metric_name)
    if about_scores:
        keys = list(held_out_key)
        if spreads := [spread for report in rounds if (spread := client_spread(report)) is not None]:
            keys.append(("line green", "clients' own adapters on their validation, mean"))
            if any(spread.lowest_client != spread.highest_client for spread in spreads):
                keys.append(("band square green", "lowest to highest"))
        chart = score_by_round(reports, metric_name, description=" ".join(about_scores))
        charts.insert(0, figure(f"{_capital(metric_name)} by round", chart, keys=keys))
    return section(
        "Learning",
        paragraph(*about_scores),
        paragraph(about_perplexity, about_loss),
        paragraph(about_best(reports), about_early_end(reports, num_rounds=num_rounds)),
        element("div", *charts, class_="pair"),
        details("Every round in numbers", _rounds_table(reports, metric_name)),
    )


def aggregation(reports: Sequence[RoundReport]) -> Html:
    """Return the error of plain averaging and what the correction left of it."""
    layers = {report.round: report.aggregation.layers for report in reports if report.aggregation is not None}
    if not layers:
        return NOTHING
    last = max(layers)
    meaning, *numbers = about_aggregation(reports)
    corrected = is_corrected(reports)
    keys = [("orange", "plain averaging"), ("blue", "after the correction")][: 2 if corrected else 1]
    chart = error_by_round(reports, description=numbers[0], with_after=corrected)
    charts = [figure("Error by round", chart, keys=keys)]
    if corrected:
        charts.append(figure("What the correction did, by round", correction_by_round(reports)))
    return section(
        "Error of the average",
        paragraph(meaning),
        paragraph(*numbers),
        element("div", *charts, class_="pair"),
        _layers(layers[last], last, with_after=corrected),
    )


def time(reports: Sequence[RoundReport]) -> Html:
    """Return where the time went."""
    if not trained(reports) or not any(wall_seconds(reports).values()):
        return NOTHING
    about = sentences.about_time(reports)
    charts = [figure("Wall time by round", time_by_round(reports, description=about[0]), keys=phase_keys(reports))]
    if client_seconds(reports):
        charts.append(figure("Inside the clients", time_in_clients(reports, description=about[-1])))
    return section(
        "Where the time went",
        paragraph(*about),
        paragraph(sentences.about_traffic(reports)),
        element("div", *charts, class_="pair"),
    )


def refused(reports: Sequence[RoundReport]) -> Html:
    """Return the updates that are not in any average."""
    found = refusals(reports)
    if not found:
        return NOTHING
    rows = [(each.client, reason_text(each.reason), ranges_text(each.rounds), str(len(each.rounds))) for each in found]
    return section(
        "Refused updates",
        paragraph(sentences.about_refusals(reports)),
        table("By client and reason", ("client", "reason", "in round", "updates"), rows, num_text_columns=3),
    )


def facts(reports: Sequence[RoundReport], metric_name: str, *, num_rounds: int) -> Html:
    """Return the run's key figures."""
    entries = []
    if gain := overall_gain(reports):
        points = " points" if is_percentage(metric_name) else ""
        change = f"{gain_text(gain.before, gain.after, metric_name)}{points}" if gain.after is not None else ""
        latest = gain.after if gain.after is not None else gain.before
        entries.append((f"held-out {metric_name}", score_text(latest, metric_name), change))
    losses = overall_gain(reports, loss_of) if is_of_tokens(reports) else None
    if losses is not None and losses.after is not None:
        shown = as_perplexity(losses)
        before = f"from {score_text(shown.before, PERPLEXITY)}"
        entries.append((f"held-out {PERPLEXITY}", score_text(shown.after, PERPLEXITY), before))
    rounds, seconds = trained(reports), [round_seconds(report) for report in reports]
    entries.append(("rounds", f"{len(rounds)} of {num_rounds}", ""))
    if rounds and (best := best_of(validation_by_round(reports))):
        ended = ", ended early" if reports[-1].ended_early else ""
        entries[-1] = ("rounds", entries[-1][1], f"best by validation: {best}{ended}")
    last = f"{duration_text(seconds[-1])} for the last round" if rounds else ""
    entries.append(("time", duration_text(sum(seconds)), last))
    if rounds:
        num_refused = sum(len(report.refused) for report in rounds)
        note = f"{count_text(num_refused, 'update')} refused" if num_refused else ""
        entries.insert(-1, ("clients", str(len(client_names(rounds))), note))
        down, up = sum(report.bytes_down for report in rounds), sum(report.bytes_up for report in rounds)
        entries.append(("adapters sent", size_text(down + up), f"{size_text(down)} down, {size_text(up)} up"))
    if tokens := sum(tokens_by_client(reports).values()):
        entries.append(("answer tokens", amount_text(tokens), "trained on, by all clients"))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", note) if note else ""))
            for name, value, note in entries
        ),
        class_="facts",
    )


def _layers(layers: Mapping[str, LayerReport], at: int, *, with_after: bool) -> Html:
    """Return the layers of round `at`: charts by module, and a table."""
    if not layers:
        return NOTHING
    charts = error_by_layer(layers, with_after=with_after)
    num_modules = len(by_module(layers))
    note = (
        f"The {MOST_MODULES} of {num_modules} modules with the largest error are drawn."
        if num_modules > len(charts)
        else ""
    )
    worst = max(layers, key=lambda path: layers[path].error_after)
    largest = (
        f"The largest error of {len(layers)} layers is left in {worst}: {significant(layers[worst].error_after, 3)}."
    )
    style = "ring orange" if with_after else "orange"
    moved = f"{moved_factor(layers.values())} moved, of its norm"
    keys = [(style, "plain averaging"), ("blue", "after the correction"), ("square purple", moved)]
    keys = keys if with_after else keys[:1]
    return join(
        (
            element("h3", f"By layer, in round {at}"),
            paragraph(largest, note),
            legend(keys),
            element("div", *(figure(name, chart) for name, chart in charts.items()), class_="pair"),
            details("Every layer in numbers", _layers_table(layers)),
        )
    )


def _layers_table(layers: Mapping[str, LayerReport]) -> Html:
    rows = [
        (
            path,
            significant(layer.update_norm, 3),
            significant(layer.error_before, 4),
            significant(layer.error_after, 4),
            significant(layer.floor, 4),
            percent_text(layer.reach_B),
            percent_text(layer.reach_A),
            percent_text(layer.moved_B),
            percent_text(layer.moved_A),
            f"{layer.effective_rank:.1f}",
        )
        for path, layer in layers.items()
    ]
    sizes = ("layer", "size of the update", "error before", "after", "least of this rank")
    head = (*sizes, "B could remove", "A could remove", "B moved", "A moved", "effective rank")
    return table("Layers", head, rows)


def _loss_keys(reports: Sequence[RoundReport]) -> list[tuple[str, str]]:
    keys = [("line orange", "clients' training, mean")]
    if any(len(report.clients) > 1 for report in reports):
        keys.append(("band square orange", "lowest to highest"))
    return [*keys, ("line blue", "held-out")] if judged(reports) else keys


def _rounds_table(reports: Sequence[RoundReport], metric_name: str) -> Html:
    of_tokens, validation = is_of_tokens(reports), validation_by_round(reports)
    rows = []
    for report in reports:
        held_out, errors = report.held_out, report.aggregation
        row = [
            str(report.round),
            score_text(held_out.overall.metric, metric_name) if held_out else UNKNOWN,
            f"{held_out.overall.num_examples:,}" if held_out else UNKNOWN,
            loss_text(mean_loss(report)) if report.clients else UNKNOWN,
            significant(errors.error_before, 4) if errors else UNKNOWN,
            significant(errors.error_after, 4) if errors else UNKNOWN,
            f"{len(report.clients)} of {len(report.cohort)}" if report.cohort else UNKNOWN,
            duration_text(round_seconds(report)),
        ]
        if validation:
            row.insert(4, loss_text(validation[report.round].loss) if report.round in validation else UNKNOWN)
        if of_tokens:
            row.insert(2, score_text(perplexity(held_out.overall.loss), PERPLEXITY) if held_out else UNKNOWN)
        rows.append(row)
    head = ["round", metric_name, "examples", "training loss", "error before", "after", "updates", "time"]
    if validation:
        head.insert(4, "validation loss")
    if of_tokens:
        head.insert(2, PERPLEXITY)
    return table("Rounds", head, rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
