"""The report's section on learning: the metric, the perplexity and the losses by round."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fedlora.common.messages import Score
from fedlora.server.record.round_report import HeldOutReport, RoundReport
from fedlora.server.record.totals import is_of_tokens, mean_loss, round_seconds, trained
from fedlora.server.report.content import Chart, Columns, Section, table
from fedlora.server.report.drawing import Colour, amount_axis, score_axis
from fedlora.server.report.numbers import (
    Measure,
    Spread,
    as_perplexity,
    client_spread,
    held_outs,
    loss_of,
    loss_range,
    metric_of,
    overall_gain,
    perplexity_of,
    perplexity_text,
)
from fedlora.server.report.series_chart import MOST_DOTS, Panel, Series, series_chart
from fedlora.server.report.shares import about_caps
from fedlora.server.report.validation import about_best, about_early_end, best_of, validation_by_round
from fedlora.server.report.wording import (
    PERPLEXITY,
    UNKNOWN,
    capital,
    change_text,
    duration_text,
    is_percentage,
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
    if is_of_tokens(reports) and (held_outs(reports) or validation_by_round(reports)):
        about_perplexity = _about_perplexity(reports)
        charts.insert(0, _perplexities(reports, description=about_perplexity))
    if about_scores:
        charts.insert(0, _scores(reports, spreads, metric_name, description=" ".join(about_scores)))
    about_end = about_best(reports), about_early_end(reports, num_rounds=num_rounds)
    return Section(
        "Learning",
        [about_scores, (about_perplexity, about_loss), [about_caps(reports)], about_end],
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
    held_out, _ = _averaged(reports, metric_of, width=2.4)
    sampled = [at for at, judged in held_outs(reports).items() if not judged.is_complete]
    own = Series(
        "clients' own adapters on their validation, mean",
        {spread.round: spread.mean for spread in spreads},
        Colour.GREEN,
        width=1.4,
        dot=0,
        band={spread.round: (spread.lowest, spread.highest) for spread in spreads},
    )
    panel = _score_panel((replace(held_out, dot=7, rings=sampled), own), metric_name)
    return _by_round(f"{capital(metric_name)} by round", panel, reports, description=description)


def _perplexities(reports: Sequence[RoundReport], *, description: str) -> Chart:
    """Return the averaged adapter's perplexity, held out and on the clients' validation examples."""
    panel = _score_panel(_averaged(reports, perplexity_of, width=2.4), PERPLEXITY)
    return _by_round("Perplexity by round", panel, reports, description=description)


def _losses(reports: Sequence[RoundReport], *, description: str) -> Chart:
    """Return the clients' training loss, mean and spread, and the averaged adapter's held out and on validation."""
    losses = {report.round: mean_loss(report) for report in trained(reports)}
    band = {report.round: loss_range(report.clients) for report in trained(reports)}
    training = Series("clients' training, mean", losses, Colour.ORANGE, band=band)
    panel = Panel((training, *_averaged(reports, loss_of)), amount_axis)
    return _by_round("Loss by round", panel, reports, description=description)


def _averaged(reports: Sequence[RoundReport], of: Measure, *, width: float = 2.0) -> tuple[Series, Series]:
    """Return the averaged adapter's finite scores, on the held-out set and on the clients' validation examples."""
    held_out = {at: judged.overall for at, judged in held_outs(reports).items()}
    finite = [
        {at: of(score) for at, score in scores.items() if math.isfinite(of(score))}
        for scores in (held_out, validation_by_round(reports))
    ]
    on_validation = "the averaged adapter on the clients' validation"
    return (
        Series("held-out", finite[0], Colour.BLUE, width=width),
        Series(on_validation, finite[1], Colour.GREEN, width=1.4, dot=0),
    )


def _score_panel(series: Sequence[Series], name: str) -> Panel:
    axis, last_text = partial(score_axis, metric_name=name), partial(score_text, metric_name=name)
    return Panel(series, axis, last_text=last_text, is_percentage=is_percentage(name))


def _by_round(title: str, panel: Panel, reports: Sequence[RoundReport], *, description: str) -> Chart:
    best = best_of(validation_by_round(reports))
    marked = {} if best is None else {best: "best round"}
    return series_chart(title, panel, description=description, until=reports[-1].round, marked=marked)


def _about_scores(reports: Sequence[RoundReport], spreads: Sequence[Spread], metric_name: str) -> list[str]:
    """Return what the learning curve shows."""
    sentences = [_about_held_out(reports, metric_name), _about_peak(reports, metric_name)] if held_outs(reports) else []
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
    scored = held_outs(reports)
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
    if _examples_by_group(scored[min(scored)]) != _examples_by_group(scored[max(scored)]):
        text += " The first and the last score are of different examples; read their difference with care."
    return text


def _examples_by_group(judged: HeldOutReport) -> dict[str, int]:
    """Return how many examples of each group a score is of, and of all; of so many the sample is always the same."""
    return {name: score.num_examples for name, score in {**judged.groups, "": judged.overall}.items()}


def _about_peak(reports: Sequence[RoundReport], metric_name: str) -> str:
    """Return which round scored highest, where that is not the last."""
    scores = _averaged(reports, metric_of)[0].values
    peak = max(scores, key=scores.__getitem__, default=0)
    if len(scores) < 3 or peak == max(scores):
        return ""
    on = "" if held_outs(reports)[peak].is_complete else ", on its sample"
    return f"The highest score was {score_text(scores[peak], metric_name)} after round {peak}{on}."


def _about_loss(reports: Sequence[RoundReport]) -> str:
    """Return what the loss did, and where it was not finite."""
    rounds = trained(reports)
    if all(math.isnan(client.loss) for at in rounds for client in at.clients.values()):
        return "The clients do not tell their training loss."
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
