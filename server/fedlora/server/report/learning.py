"""The report's section on learning: the metric, the perplexity and the losses by round."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fedlora.common.messages import Score
from fedlora.server.record.round_report import HeldOutReport, RoundReport
from fedlora.server.report.content import Chart, Columns, Section, paragraphs, table
from fedlora.server.report.drawing import Colour, amount_axis, score_axis
from fedlora.server.report.numbers import (
    Measure,
    Spread,
    as_perplexity,
    client_spread,
    is_of_tokens,
    loss_of,
    loss_range,
    mean_loss,
    metric_of,
    overall_gain,
    perplexity_of,
    perplexity_text,
    round_seconds,
    trained,
)
from fedlora.server.report.series_chart import MOST_DOTS, Panel, Series, series_chart
from fedlora.server.report.validation import about_best, about_early_end, best_of, validation_by_round
from fedlora.server.report.wording import (
    PERPLEXITY,
    UNKNOWN,
    capital,
    change_text,
    duration_text,
    list_text,
    loss_text,
    ranges_text,
    score_text,
    significant,
)


def learning(reports: Sequence[RoundReport], metric_name: str, *, num_rounds: int) -> Section | None:
    """Return the learning curves; nothing before a round is over."""
    if not trained(reports):
        return None
    spreads = [spread for report in reports if (spread := client_spread(report)) is not None]
    about_scores = _about_scores(reports, spreads, metric_name)
    about_loss, about_perplexity = _about_loss(reports), ""
    charts = [_losses(reports, description=about_loss)]
    if is_of_tokens(reports) and (_held_out(reports) or validation_by_round(reports)):
        about_perplexity = _about_perplexity(reports)
        charts.insert(0, _perplexities(reports, description=about_perplexity))
    if about_scores:
        charts.insert(0, _scores(reports, spreads, metric_name, description=" ".join(about_scores)))
    about_end = about_best(reports), about_early_end(reports, num_rounds=num_rounds)
    return Section(
        "Learning",
        paragraphs(about_scores, (about_perplexity, about_loss), about_end),
        charts,
        table=table("Rounds", _columns(reports, metric_name), reports),
        summary="Every round in numbers",
    )


def _columns(reports: Sequence[RoundReport], metric_name: str) -> Columns[RoundReport]:
    """Return what is shown of a round in numbers."""
    validation = validation_by_round(reports)

    def score(at: RoundReport) -> Score | None:
        return at.held_out.overall if at.held_out else None

    return (
        ("round", lambda at: str(at.round)),
        (metric_name, lambda at: score_text(metric_of(overall), metric_name) if (overall := score(at)) else UNKNOWN),
        (PERPLEXITY, lambda at: perplexity_text(score(at))),
        ("examples", lambda at: f"{overall.num_examples:,}" if (overall := score(at)) else UNKNOWN),
        ("training loss", lambda at: loss_text(mean_loss(at)) if at.clients else UNKNOWN),
        ("validation loss", lambda at: loss_text(validation[at.round].loss) if at.round in validation else UNKNOWN),
        ("error before", lambda at: significant(at.aggregation.error_before, 4) if at.aggregation else UNKNOWN),
        ("after", lambda at: significant(at.aggregation.error_after, 4) if at.aggregation else UNKNOWN),
        ("updates", lambda at: f"{len(at.clients)} of {len(at.cohort)}" if at.cohort else UNKNOWN),
        ("time", lambda at: duration_text(round_seconds(at))),
    )


def _scores(reports: Sequence[RoundReport], spreads: Sequence[Spread], metric_name: str, *, description: str) -> Chart:
    """Return the held-out score, and the band of the clients' own validation."""
    sampled = [at for at, held_out in _held_out(reports).items() if not held_out.is_complete]
    held_out = Series("held-out", _finite(reports, metric_of), Colour.BLUE, width=2.4, dot=7, rings=sampled)
    own = Series(
        "clients' own adapters on their validation, mean",
        {spread.round: spread.mean for spread in spreads},
        Colour.GREEN,
        width=1.4,
        dot=0,
        band={spread.round: (spread.lowest, spread.highest) for spread in spreads},
    )
    axis = partial(score_axis, metric_name=metric_name)
    curves = _labelled(held_out, own, metric_name)
    return _by_round(f"{capital(metric_name)} by round", Panel(curves, axis), reports, description=description)


def _perplexities(reports: Sequence[RoundReport], *, description: str) -> Chart:
    """Return the averaged adapter's perplexity, held out and on the clients' validation examples."""
    held_out = Series("held-out", _finite(reports, perplexity_of), Colour.BLUE, width=2.4)
    axis = partial(score_axis, metric_name=PERPLEXITY)
    curves = _labelled(held_out, _on_validation(reports, perplexity_of), PERPLEXITY)
    return _by_round("Perplexity by round", Panel(curves, axis), reports, description=description)


def _losses(reports: Sequence[RoundReport], *, description: str) -> Chart:
    """Return the clients' training loss, mean and spread, and the averaged adapter's held out and on validation."""
    rounds = trained(reports)
    training = Series(
        "clients' training, mean",
        {report.round: mean_loss(report) for report in rounds},
        Colour.ORANGE,
        band={report.round: loss_range(report.clients) for report in rounds},
    )
    held_out = Series("held-out", _finite(reports, loss_of), Colour.BLUE)
    curves = training, held_out, _on_validation(reports, loss_of)
    return _by_round("Loss by round", Panel(curves, amount_axis), reports, description=description)


def _by_round(title: str, panel: Panel, reports: Sequence[RoundReport], *, description: str) -> Chart:
    best = best_of(validation_by_round(reports))
    marked = {} if best is None else {best: "best round"}
    return series_chart(title, panel, description=description, until=reports[-1].round, marked=marked)


def _labelled(main: Series, other: Series, metric_name: str) -> tuple[Series, Series]:
    """Return both with the last value of the main one, or of the only one, in words on the side away from the other."""
    if not main.values:
        main, other = other, main
    if not main.values:
        return main, other
    last = main.values[max(main.values)]
    # What falls ends near the axis, where nothing fits below.
    is_lower = metric_name != PERPLEXITY and bool(other.values) and last < other.values[max(other.values)]
    return replace(main, label=score_text(last, metric_name), is_label_below=is_lower), other


def _on_validation(reports: Sequence[RoundReport], of: Measure) -> Series:
    scores = {at: of(score) for at, score in validation_by_round(reports).items()}
    finite = {at: value for at, value in scores.items() if math.isfinite(value)}
    return Series("the averaged adapter on the clients' validation", finite, Colour.GREEN, width=1.4, dot=0)


def _held_out(reports: Sequence[RoundReport]) -> dict[int, HeldOutReport]:
    return {report.round: report.held_out for report in reports if report.held_out is not None}


def _finite(reports: Sequence[RoundReport], of: Measure) -> dict[int, float]:
    """Return the held-out scores by round that are finite."""
    scores = {at: of(held_out.overall) for at, held_out in _held_out(reports).items()}
    return {at: value for at, value in scores.items() if math.isfinite(value)}


def _about_scores(reports: Sequence[RoundReport], spreads: Sequence[Spread], metric_name: str) -> list[str]:
    """Return what the learning curve shows."""
    sentences = [_about_held_out(reports, metric_name), _about_peak(reports, metric_name)] if _held_out(reports) else []
    if spreads and spreads[-1].lowest_client != spreads[-1].highest_client:
        last = spreads[-1]
        sentences.append(
            f"The band is what the clients score on their own validation examples right after local training, "
            f"before anything is averaged: in round {last.round} from {score_text(last.lowest, metric_name)} "
            f"({last.lowest_client}) to {score_text(last.highest, metric_name)} ({last.highest_client})."
        )
    elif spreads:
        sentences.append(
            "The thin line is the client's score on its own validation examples right after local training."
        )
    return [sentence for sentence in sentences if sentence]


def _about_held_out(reports: Sequence[RoundReport], metric_name: str) -> str:
    scored = _held_out(reports)
    samples = [held_out.overall.num_examples for held_out in scored.values() if not held_out.is_complete]
    whole = {at: held_out.overall.num_examples for at, held_out in scored.items() if held_out.is_complete}
    text = f"The bold line is the averaged adapter's {metric_name} on held-out examples, "
    if samples and whole:
        filled, hollow = (" (filled dots)", " (hollow)") if len(scored) <= MOST_DOTS else ("", "")
        moments = [f"after round {at}" if at else "before training" for at in whole]
        text += (
            f"judged on all {max(whole.values()):,} {list_text(moments)}{filled}, "
            f"and on a sample of {samples[-1]:,} otherwise{hollow}."
        )
    elif samples:
        text += f"judged on a sample of {samples[-1]:,}."
    else:
        text += f"judged on all {max(whole.values()):,}."
    if len(scored) > 1 and (min(scored) in whole) != (max(scored) in whole):
        text += " The first and the last score are of different examples; read their difference with care."
    return text


def _about_peak(reports: Sequence[RoundReport], metric_name: str) -> str:
    """Return which round scored highest, where that is not the last."""
    scores = _finite(reports, metric_of)
    peak = max(scores, key=scores.__getitem__, default=0)
    if len(scores) < 3 or peak == max(scores):
        return ""
    on = "" if _held_out(reports)[peak].is_complete else ", on its sample"
    return f"The highest score was {score_text(scores[peak], metric_name)} after round {peak}{on}."


def _about_loss(reports: Sequence[RoundReport]) -> str:
    """Return what the loss did, and where it was not finite."""
    rounds = trained(reports)
    first, last = (f"{loss_text(mean_loss(at))} in round {at.round}" for at in (rounds[0], rounds[-1]))
    text = f"Mean training loss went from {first} to {last}."
    if len(rounds) == 1:
        text = f"Mean training loss was {loss_text(mean_loss(rounds[0]))}."
    spoilt = {at.round: names for at in rounds if (names := _clients_without_finite_loss(at))}
    if spoilt:
        names = sorted({name for clients in spoilt.values() for name in clients})
        text += f" It was not finite in round {ranges_text(spoilt)}, at {list_text(names)}: the gaps in the curve."
    return text


def _clients_without_finite_loss(report: RoundReport) -> list[str]:
    """Return the clients whose update was accepted although their mean loss is not finite."""
    return [name for name, client in report.clients.items() if not math.isfinite(client.loss)]


def _about_perplexity(reports: Sequence[RoundReport]) -> str:
    """Return what perplexity is, and what it did on the held-out examples."""
    meaning = (
        "Perplexity is the exponential of the loss per answer token: among so many equally likely tokens the model "
        "hesitates at each."
    )
    losses = overall_gain(reports, loss_of)
    if losses is None or losses.after is None:
        return meaning
    gain = as_perplexity(losses)
    return f"{meaning} On held-out examples it {change_text(gain.before, gain.after, PERPLEXITY)}."
