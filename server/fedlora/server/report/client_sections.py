"""The report's sections by group and by client: scores before and after, local training by round, what was used."""

from collections.abc import Sequence
from dataclasses import replace

from fedlora.server.report import sentences
from fedlora.server.report.client_charts import local_training
from fedlora.server.report.local_training import (
    LocalTraining,
    local_trainings,
    mean_local_trainings,
    tokens_by_client,
)
from fedlora.server.report.markup import (
    NOTHING,
    Html,
    details,
    element,
    figure,
    legend,
    paragraph,
    prose,
    section,
    table,
)
from fedlora.server.report.numbers import (
    Gain,
    as_perplexity,
    client_gains,
    group_gains,
    is_of_tokens,
    loss_of,
    mean_gain,
    metric_of,
    perplexity,
    total_gains,
    trained,
)
from fedlora.server.report.score_charts import MOST_NAMED, before_and_after
from fedlora.server.report.wording import (
    PERPLEXITY,
    UNKNOWN,
    gain_text,
    is_percentage,
    loss_text,
    score_text,
)
from fedlora.server.round_report import RoundReport

# More clients are drawn by their mean.
_MOST_CLIENTS_DRAWN = 12
_MOST_ROWS = 500
_NARROW = 300


def groups(reports: Sequence[RoundReport], metric_name: str) -> Html:
    """Return the held-out score by group and the clients' own validation, before and after."""
    gains, clients = group_gains(reports), client_gains(reports)
    of_tokens = is_of_tokens(reports)
    content: list[Html] = []
    if len(gains) > 1:
        perplexities = (group_gains(reports, loss_of), total_gains(reports, loss_of)) if of_tokens else None
        content += [
            paragraph(sentences.about_groups(gains, metric_name)),
            _gains(
                gains,
                metric_name,
                title="Held-out {} by group",
                noun="group",
                totals=total_gains(reports),
                losses=perplexities,
            ),
        ]
    if len(clients) > 1:
        losses = client_gains(reports, loss_of)
        content += [
            element("h3", "Each client on its own validation examples"),
            paragraph(
                "Before its first local training and after its last one: the client's own adapter, before averaging.",
                sentences.about_groups(clients, metric_name),
            ),
            _gains(
                clients,
                metric_name,
                title="Own validation {} by client",
                noun="client",
                totals=[mean_gain(clients, noun="client")],
                losses=(losses, [mean_gain(losses, noun="client")]) if of_tokens else None,
            ),
        ]
    content += _by_round(reports, metric_name, of_tokens=of_tokens)
    content.append(paragraph(sentences.about_memory(reports)))
    if tokens := tokens_by_client(reports):
        content.append(_tokens_table(reports, tokens))
    return section("By group and client" if len(gains) > 1 else "By client", *content) if any(content) else NOTHING


def _gains(
    gains: Sequence[Gain],
    metric_name: str,
    *,
    title: str,
    noun: str,
    totals: Sequence[Gain],
    losses: tuple[Sequence[Gain], Sequence[Gain]] | None,
) -> Html:
    """Return gains as a chart and a table; with `losses` per token, of the same and their totals, perplexity too."""
    is_over = any(gain.after is not None for gain in gains)
    ring = "" if len(gains) > MOST_NAMED else "ring "
    keys = [(f"{ring}grey", "before"), ("blue", "after")][: 2 if is_over else 1]

    def chart(shown: Sequence[Gain], name: str) -> Html:
        description = f"{title.format(name)}: " + sentences.about_groups(shown, name)
        drawing = before_and_after(shown, name, noun=noun, description=description)
        return figure(title.format(name), drawing, keys=keys)

    unit = "gain, points" if is_percentage(metric_name) else "gain"
    num_columns = 5 if is_over else 3
    rows = [_gain_row(gain, metric_name)[:num_columns] for gain in (*gains, *totals)]
    head = [noun, "examples", "before", "after", unit][:num_columns]
    caption = f"{title.format(metric_name)}, in numbers"
    if losses is None:
        numbers = table(caption, head, rows, num_total_rows=len(totals))
        return element("div", chart(gains, metric_name), numbers, class_="pair")
    perplexities = [as_perplexity(gain) for part in losses for gain in part]
    beside = [[score_text(gain.before, PERPLEXITY), score_text(gain.after, PERPLEXITY)] for gain in perplexities]
    rows = [row + texts[: 2 if is_over else 1] for row, texts in zip(rows, beside, strict=True)]
    head += [f"{PERPLEXITY} before", "after"][: 2 if is_over else 1]
    charts = chart(gains, metric_name), chart(perplexities[: len(gains)], PERPLEXITY)
    caption = title.format(f"{metric_name} and {PERPLEXITY}")
    return element(
        "div", element("div", *charts, class_="pair"), table(caption, head, rows, num_total_rows=len(totals))
    )


def _gain_row(gain: Gain, metric_name: str) -> list[str]:
    return [
        gain.name or "(no name)",
        f"{gain.num_examples:,}",
        score_text(gain.before, metric_name),
        score_text(gain.after, metric_name),
        gain_text(gain.before, gain.after, metric_name),
    ]


def _by_round(reports: Sequence[RoundReport], metric_name: str, *, of_tokens: bool) -> list[Html]:
    """Return what local training did to each client's own validation in each round, charts and a table."""
    by_client = local_trainings(reports, loss_of if of_tokens else metric_of)
    if max((len(trainings) for trainings in by_client.values()), default=0) < 2:
        return []
    drawn, width = by_client, _NARROW
    if len(by_client) == 1 or len(by_client) > _MOST_CLIENTS_DRAWN:
        name = f"Mean of {len(by_client)} clients" if len(by_client) > 1 else next(iter(by_client))
        drawn, width = {name: mean_local_trainings(by_client)}, 2 * _NARROW
    if of_tokens:
        drawn = {name: [_in_perplexity(each) for each in trainings] for name, trainings in drawn.items()}
    name_of_score = PERPLEXITY if of_tokens else metric_name
    limits = [value for trainings in drawn.values() for each in trainings for value in (each.before, each.after)]
    charts = [
        figure(name, local_training(trainings, name_of_score, name=name, limits=limits, width=width))
        for name, trainings in drawn.items()
    ]
    keys = [
        ("ring grey", "the averaged adapter, before local training"),
        ("blue", "the client's own adapter, after it"),
    ]
    return [
        element("h3", prose(f"Local training by round: {name_of_score} on the client's own validation examples")),
        paragraph(
            "From a ring to its dot is what the client's local training changes; from a dot to the next ring, what "
            "averaging with the others does to it."
        ),
        legend(keys),
        element("div", *charts, class_="many"),
        details("Every client and round in numbers", _trainings_table(reports, metric_name, of_tokens=of_tokens)),
    ]


def _in_perplexity(training: LocalTraining) -> LocalTraining:
    return replace(training, before=perplexity(training.before), after=perplexity(training.after))


def _trainings_table(reports: Sequence[RoundReport], metric_name: str, *, of_tokens: bool) -> Html:
    rows: list[list[str]] = []
    rounds = trained(reports)
    shown = rounds
    while len(shown) > 1 and sum(len(report.clients) for report in shown) > _MOST_ROWS:
        shown = shown[1:]
    for report in shown:
        for name, client in sorted(report.clients.items()):
            scores = client.before, client.after
            row = [name, str(report.round), f"{client.num_steps:,}", loss_text(client.loss)]
            row += [score_text(score.metric if score else None, metric_name) for score in scores]
            if of_tokens:
                row += [score_text(perplexity(score.loss) if score else None, PERPLEXITY) for score in scores]
                row.append(f"{client.num_tokens:,}" if client.num_tokens else UNKNOWN)
            rows.append(row)
    head = ["client", "round", "steps", "training loss", f"{metric_name} before", "after"]
    head += [f"{PERPLEXITY} before", "after", "answer tokens"] if of_tokens else []
    caption = "Local training" if len(shown) == len(rounds) else f"Local training, the last {len(shown)} rounds"
    return table(caption, head, rows)


def _tokens_table(reports: Sequence[RoundReport], tokens: dict[str, int]) -> Html:
    """Return the answer tokens that each client has trained on, in all and by the second of training."""
    seconds = {
        name: sum(report.clients[name].seconds.get("training", 0.0) for report in reports if name in report.clients)
        for name in tokens
    }
    total = sum(tokens.values())
    rows = [
        [
            name,
            f"{count:,}",
            f"{100 * count / total:.1f} %",
            f"{count / seconds[name]:,.0f}" if seconds[name] > 0 else UNKNOWN,
        ]
        for name, count in tokens.items()
    ]
    rows.append(["all clients", f"{total:,}", "100.0 %", ""])
    head = ("client", "answer tokens", "share", "per second of training")
    return element("div", table("Answer tokens trained on, by client", head, rows, num_total_rows=1), class_="half")
