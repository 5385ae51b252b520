"""Charts of the metric and the loss: by round, and by group or client before and after."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedlora.server.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    amount_axis,
    dot_size,
    mark_round,
    rounds_axis,
    score_axis,
    short,
    themed_svg,
)
from fedlora.server.report.markup import Html
from fedlora.server.report.numbers import (
    Gain,
    client_spread,
    judged,
    loss_range,
    mean_loss,
    perplexity,
    trained,
)
from fedlora.server.report.validation import best_of, validation_by_round
from fedlora.server.report.wording import PERPLEXITY, score_text
from fedlora.server.round_report import RoundReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Past so many names, a chart shows their distribution and a table their names.
MOST_NAMED = 16


def score_by_round(reports: Sequence[RoundReport], metric_name: str, *, description: str) -> Html:
    """Return the metric over the rounds: the held-out score, and the band of the clients' own validation."""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        spreads = [spread for report in reports if (spread := client_spread(report)) is not None]
        rounds = [spread.round for spread in spreads]
        values = [value for spread in spreads for value in (spread.lowest, spread.highest)]
        if spreads:
            low, high = [s.lowest for s in spreads], [s.highest for s in spreads]
            _band(axes, rounds, low, high, colour=GREEN)
            axes.plot(rounds, [spread.mean for spread in spreads], color=GREEN, linewidth=1.4)
        scores = _finite({r.round: r.held_out.overall.metric for r in reports if r.held_out is not None})
        if scores:
            _held_out_line(axes, reports, scores)
            is_lower = bool(spreads) and spreads[-1].mean > scores[max(scores)]
            _end_label(axes, max(scores), scores[max(scores)], metric_name, below=is_lower)
        elif spreads:
            _end_label(axes, rounds[-1], spreads[-1].mean, metric_name)
        score_axis(axes, values + list(scores.values()), metric_name)
        rounds_axis(axes, min([*rounds, *scores, reports[-1].round]), reports[-1].round)
        _mark_best(axes, reports)

    return themed_svg(paint, height=300, description=description)


def loss_by_round(reports: Sequence[RoundReport], *, description: str) -> Html:
    """Return the clients' training loss over the rounds, mean and spread, and the averaged adapter's loss.

    That is its loss on the held-out set, and on the clients' own validation examples.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        rounds = [report.round for report in trained(reports)]
        low, high = zip(*(loss_range(report.clients) for report in trained(reports)), strict=True)
        _band(axes, rounds, low, high, colour=ORANGE)
        axes.plot(
            rounds,
            [mean_loss(report) for report in trained(reports)],
            color=ORANGE,
            marker="o",
            markersize=dot_size(len(rounds)),
        )
        held_out = _finite({r.round: r.held_out.overall.loss for r in reports if r.held_out is not None})
        axes.plot(list(held_out), list(held_out.values()), color=BLUE, marker="o", markersize=dot_size(len(held_out)))
        validation = {at: score.loss for at, score in validation_by_round(reports).items()}
        axes.plot(list(validation), list(validation.values()), color=GREEN, linewidth=1.4)
        top = max([*filter(math.isfinite, high), *held_out.values(), *validation.values()], default=0.0)
        amount_axis(axes, 1.08 * top or 1.0)
        rounds_axis(axes, min([*rounds, *held_out, *validation]), rounds[-1])
        _mark_best(axes, reports)

    return themed_svg(paint, height=300, description=description)


def perplexity_by_round(reports: Sequence[RoundReport], *, description: str) -> Html:
    """Return the averaged adapter's perplexity over the rounds: held out, and on the clients' validation examples."""

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        held_out = {r.round: perplexity(r.held_out.overall.loss) for r in reports if r.held_out is not None}
        validation = {at: perplexity(score.loss) for at, score in validation_by_round(reports).items()}
        curves = (_finite(validation), GREEN, 1.4), (_finite(held_out), BLUE, 2.4)
        for values, colour, width in curves:
            size = dot_size(len(values)) if colour == BLUE else 0
            axes.plot(list(values), list(values.values()), color=colour, linewidth=width, marker="o", markersize=size)
        shown = [value for values, _, _ in curves for value in values.values()]
        if last := _finite(held_out) or _finite(validation):
            _end_label(axes, max(last), last[max(last)], PERPLEXITY)
        score_axis(axes, shown, PERPLEXITY)
        rounds_axis(axes, min([*held_out, *validation, reports[-1].round]), reports[-1].round)
        _mark_best(axes, reports)

    return themed_svg(paint, height=300, description=description)


def before_and_after(gains: Sequence[Gain], metric_name: str, *, noun: str, description: str) -> Html:
    """Return one line for each name from its score before to its score after."""
    if len(gains) > MOST_NAMED:
        return themed_svg(
            lambda figure: _paint_distribution(figure.subplots(), gains, metric_name, noun=noun),
            height=300,
            description=description,
        )
    return themed_svg(
        lambda figure: _paint_dumbbells(figure.subplots(), gains, metric_name),
        height=52 + 28 * max(len(gains), 2),
        description=description,
    )


def _paint_dumbbells(axes: "Axes", gains: Sequence[Gain], metric_name: str) -> None:
    for place, gain in enumerate(gains):
        before, after = _or_nan(gain.before), _or_nan(gain.after)
        axes.plot([before, after], [place, place], color=GREY, linewidth=2, zorder=2)
        axes.plot(
            [before],
            [place],
            "o",
            color=GREY,
            markerfacecolor=PAPER,
            markeredgewidth=2,
            markersize=9,
            zorder=3,
            clip_on=False,
        )
        axes.plot([after], [place], "o", color=BLUE, markersize=8, zorder=4, clip_on=False)
        if math.isfinite(latest := after if math.isfinite(after) else before):
            axes.annotate(
                score_text(latest, metric_name),
                (latest, place),
                xytext=(-9 if latest < before else 9, 0),
                textcoords="offset points",
                ha="right" if latest < before else "left",
                va="center",
            )
    axes.set_yticks(range(len(gains)), [short(gain.name) for gain in gains])
    axes.tick_params(axis="y", labelcolor=INK, pad=9)
    axes.set_ylim(max(len(gains), 2) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    score_axis(axes, _values(gains), metric_name, horizontal=True)
    if metric_name == PERPLEXITY:
        # What falls is labelled on its left, where the names stand.
        (low, high), is_log = axes.get_xlim(), axes.get_xscale() == "log"
        axes.set_xlim(low * (low / high) ** 0.16 if is_log else low - 0.16 * (high - low), high)


def _paint_distribution(axes: "Axes", gains: Sequence[Gain], metric_name: str, *, noun: str) -> None:
    ordered = sorted(gains, key=lambda gain: _sort_key(gain.after if gain.after is not None else gain.before))
    places = range(len(ordered))
    before, after = [_or_nan(gain.before) for gain in ordered], [_or_nan(gain.after) for gain in ordered]
    axes.vlines(places, before, after, color=GREY, linewidth=max(0.6, min(2.0, 200 / len(ordered))), alpha=0.6)
    size = max(2.0, min(6.0, 350 / len(ordered)))
    axes.plot(places, before, "o", color=GREY, markersize=size, linestyle="none")
    axes.plot(places, after, "o", color=BLUE, markersize=size, linestyle="none")
    axes.set_xticks([])
    ends = f"{short(ordered[0].name)} (lowest) to {short(ordered[-1].name)} (highest)"
    axes.set_xlabel(f"{len(ordered)} {noun}s: {ends}", labelpad=8)
    score_axis(axes, _values(gains), metric_name)


def _held_out_line(axes: "Axes", reports: Sequence[RoundReport], scores: dict[int, float]) -> None:
    axes.plot(list(scores), list(scores.values()), color=BLUE, linewidth=2.4, zorder=3)
    if not dot_size(len(scores)):
        return
    for report in judged(reports):
        if report.round in scores and report.held_out is not None:
            axes.plot(
                [report.round],
                [scores[report.round]],
                "o",
                color=BLUE,
                markersize=7,
                markerfacecolor=BLUE if report.held_out.is_complete else PAPER,
                markeredgewidth=1.8,
                zorder=4,
            )


def _mark_best(axes: "Axes", reports: Sequence[RoundReport]) -> None:
    if (best := best_of(validation_by_round(reports))) is not None:
        mark_round(axes, best, "best round")


def _end_label(axes: "Axes", at: int, score: float, metric_name: str, *, below: bool = False) -> None:
    axes.annotate(
        score_text(score, metric_name),
        (at, score),
        xytext=(0, -9 if below else 9),
        textcoords="offset points",
        ha="center",
        va="top" if below else "bottom",
        weight="bold",
    )


def _band(axes: "Axes", rounds: Sequence[int], low: Sequence[float], high: Sequence[float], *, colour: str) -> None:
    axes.fill_between(rounds, low, high, color=colour, alpha=0.16, linewidth=0)
    if len(rounds) == 1:
        axes.vlines(rounds, low, high, color=colour, alpha=0.4, linewidth=6)


def _finite(scores: dict[int, float]) -> dict[int, float]:
    return {at: value for at, value in scores.items() if math.isfinite(value)}


def _values(gains: Sequence[Gain]) -> list[float]:
    return [v for gain in gains for v in (gain.before, gain.after) if v is not None and math.isfinite(v)]


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _sort_key(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else -math.inf
