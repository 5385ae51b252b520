"""Charts of local training: each client's score on its own validation examples before and after it, by round."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedlora.server.report.drawing import BLUE, GREY, PAPER, dot_size, rounds_axis, score_axis, themed_svg
from fedlora.server.report.local_training import LocalTraining
from fedlora.server.report.markup import Html
from fedlora.server.report.wording import score_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def local_training(
    trainings: Sequence[LocalTraining], metric_name: str, *, name: str, limits: Sequence[float], width: int
) -> Html:
    """Return one client's scores, or the clients' mean, over the rounds.

    Args:
        trainings: of one round each, in their order.
        limits: scores that the axis must reach, so that several charts have one scale.
        width: of the chart in CSS pixels.
    """
    last = trainings[-1]
    description = (
        f"{name}: {metric_name} before and after local training in {len(trainings)} rounds; in round {last.round} "
        f"from {score_text(last.before, metric_name)} to {score_text(last.after, metric_name)}."
    )

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        rounds = [training.round for training in trainings]
        before = [training.before if math.isfinite(training.before) else math.nan for training in trainings]
        after = [training.after if math.isfinite(training.after) else math.nan for training in trainings]
        size = 0.8 * dot_size(len(rounds))
        axes.plot(rounds, before, color=GREY, linewidth=1.6, zorder=2)
        axes.vlines(rounds, before, after, color=BLUE, linewidth=1.2, alpha=0.6, zorder=2)
        axes.plot(
            rounds,
            before,
            "o",
            color=GREY,
            markerfacecolor=PAPER,
            markeredgewidth=1.6,
            markersize=size,
            zorder=3,
            linestyle="none",
        )
        axes.plot(rounds, after, "o", color=BLUE, markersize=size or 2, zorder=4)
        score_axis(axes, [value for value in limits if math.isfinite(value)], metric_name)
        rounds_axis(axes, rounds[0], rounds[-1])

    return themed_svg(paint, height=190, width=width, description=description)
