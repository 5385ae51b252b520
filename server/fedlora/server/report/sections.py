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
from fedlora.server.report.layers import by_module
from fedlora.server.report.markup import Html, details, element, figure, join, legend, prose, table
from fedlora.server.report.numbers import (
    Gain,
    client_gains,
    client_names,
    client_seconds,
    client_spread,
    group_gains,
    is_corrected,
    judged,
    mean_gain,
    mean_loss,
    moved_factor,
    overall_gain,
    refusals,
    round_seconds,
    total_gains,
    trained,
    wall_seconds,
)
from fedlora.server.report.score_charts import MOST_NAMED, before_and_after, loss_by_round, score_by_round
from fedlora.server.report.time_charts import phase_keys, time_by_round, time_in_clients
from fedlora.server.report.wording import (
    UNKNOWN,
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

NOTHING = join(())


def section(title: str, *content: str) -> Html:
    """Return a section under its heading."""
    return element("section", element("h2", title), *content)


def paragraph(*texts: str) -> Html:
    """Return the sentences as one paragraph."""
    return element("p", prose(" ".join(texts)))


def learning(reports: Sequence[RoundReport], metric_name: str) -> Html:
    """Return the learning curves."""
    rounds = trained(reports)
    if not rounds:
        return NOTHING
    about_loss = sentences.about_loss(reports)
    charts = [
        figure("Training loss by round", loss_by_round(reports, description=about_loss), keys=_loss_keys(reports))
    ]
    about_scores = sentences.about_scores(reports, metric_name)
    if about_scores:
        keys = [("line blue", "held-out")] if judged(reports) else []
        if spreads := [spread for report in rounds if (spread := client_spread(report)) is not None]:
            keys.append(("line green", "clients' own validation, mean"))
            if any(spread.lowest_client != spread.highest_client for spread in spreads):
                keys.append(("band square green", "lowest to highest"))
        chart = score_by_round(reports, metric_name, description=" ".join(about_scores))
        charts.insert(0, figure(f"{metric_name.capitalize()} by round", chart, keys=keys))
    return section(
        "Learning",
        paragraph(*about_scores),
        paragraph(about_loss),
        element("div", *charts, class_="pair"),
        details("Every round in numbers", _rounds_table(reports, metric_name)),
    )


def groups(reports: Sequence[RoundReport], metric_name: str) -> Html:
    """Return the held-out score by group and the clients' own validation, before and after."""
    gains, clients = group_gains(reports), client_gains(reports)
    content: list[Html] = []
    if len(gains) > 1:
        content += [
            paragraph(sentences.about_groups(gains, metric_name)),
            _gains(
                gains,
                metric_name,
                title=f"Held-out {metric_name} by group",
                noun="group",
                totals=total_gains(reports),
            ),
        ]
    if len(clients) > 1:
        content += [
            element("h3", "Each client on its own validation examples"),
            paragraph(
                "Before its first local training and after its last one: the client's own adapter, before averaging.",
                sentences.about_groups(clients, metric_name),
            ),
            _gains(
                clients,
                metric_name,
                title=f"Own validation {metric_name} by client",
                noun="client",
                totals=[mean_gain(clients, noun="client")],
            ),
        ]
    return section("By group and client" if len(gains) > 1 else "By client", *content) if content else NOTHING


def aggregation(reports: Sequence[RoundReport]) -> Html:
    """Return the error of plain averaging and what the correction left of it."""
    layers = {report.round: report.aggregation.layers for report in reports if report.aggregation is not None}
    if not layers:
        return NOTHING
    last = max(layers)
    meaning, *numbers = sentences.about_aggregation(reports)
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
    rounds, seconds = trained(reports), [round_seconds(report) for report in reports]
    entries.append(("rounds", f"{len(rounds)} of {num_rounds}", ""))
    last = f"{duration_text(seconds[-1])} for the last round" if rounds else ""
    entries.append(("time", duration_text(sum(seconds)), last))
    if rounds:
        num_refused = sum(len(report.refused) for report in rounds)
        note = f"{count_text(num_refused, 'update')} refused" if num_refused else ""
        entries.insert(-1, ("clients", str(len(client_names(rounds))), note))
        down, up = sum(report.bytes_down for report in rounds), sum(report.bytes_up for report in rounds)
        entries.append(("adapters sent", size_text(down + up), f"{size_text(down)} down, {size_text(up)} up"))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value, element("small", note) if note else ""))
            for name, value, note in entries
        ),
        class_="facts",
    )


def _gains(gains: Sequence[Gain], metric_name: str, *, title: str, noun: str, totals: Sequence[Gain]) -> Html:
    description = f"{title}: " + sentences.about_groups(gains, metric_name)
    is_over = any(gain.after is not None for gain in gains)
    ring = "" if len(gains) > MOST_NAMED else "ring "
    keys = [(f"{ring}grey", "before"), ("blue", "after")][: 2 if is_over else 1]
    chart = before_and_after(gains, metric_name, noun=noun, description=description)
    unit = "gain, points" if is_percentage(metric_name) else "gain"
    num_columns = 5 if is_over else 3
    rows = [_gain_row(gain, metric_name)[:num_columns] for gain in (*gains, *totals)]
    head = (noun, "examples", "before", "after", unit)[:num_columns]
    numbers = table(f"{title}, in numbers", head, rows, num_total_rows=len(totals))
    return element("div", figure(title, chart, keys=keys), numbers, class_="pair")


def _gain_row(gain: Gain, metric_name: str) -> list[str]:
    return [
        gain.name or "(no name)",
        f"{gain.num_examples:,}",
        score_text(gain.before, metric_name),
        score_text(gain.after, metric_name),
        gain_text(gain.before, gain.after, metric_name),
    ]


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
    rows = []
    for report in reports:
        held_out, errors = report.held_out, report.aggregation
        rows.append(
            (
                str(report.round),
                score_text(held_out.overall.metric, metric_name) if held_out else UNKNOWN,
                f"{held_out.overall.num_examples:,}" if held_out else UNKNOWN,
                loss_text(mean_loss(report)) if report.clients else UNKNOWN,
                significant(errors.error_before, 4) if errors else UNKNOWN,
                significant(errors.error_after, 4) if errors else UNKNOWN,
                f"{len(report.clients)} of {len(report.cohort)}" if report.cohort else UNKNOWN,
                duration_text(round_seconds(report)),
            )
        )
    head = ("round", metric_name, "examples", "training loss", "error before", "after", "updates", "time")
    return table("Rounds", head, rows)
