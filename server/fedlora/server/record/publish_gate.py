"""Whether a round's adapter is good enough to be published, by the losses that the best round is chosen by. Pure.

That is the clients' loss on their own validation examples; where they judge none, that on the held-out set. A client
judges the adapter that it is given: a round's validation loss is known once the next round is over, and after the last
round at once.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from fedlora.server.record.best_round import scores_in
from fedlora.server.record.round_report import RoundReport


@dataclass(frozen=True)
class Losses:
    """What is known of the rounds' adapters, by round."""

    validation: Mapping[int, float] = field(default_factory=dict)
    held_out: Mapping[int, float] = field(default_factory=dict)

    def then(self, report: RoundReport) -> "Losses":
        """Return what is known after one round more."""
        validation = {number: score.loss for number, score in scores_in(report).items()}
        held_out = {} if report.held_out is None else {report.round: report.held_out.overall.loss}
        return Losses({**self.validation, **validation}, {**self.held_out, **held_out})

    @property
    def name(self) -> str:
        """Which of the two kinds counts, in words."""
        return "validation loss" if self.validation else "held-out loss"

    def of(self, round: int) -> float | None:
        """Return a round's loss, None where it is not known yet."""
        return (self.validation or self.held_out).get(round)


def refusal(
    losses: Losses,
    round: int,
    *,
    margin: float | None,
    published: Collection[int] = (),
    rolled_back_to: int | None = None,
) -> str:
    """Return what speaks against publishing a round's adapter, nothing where it may be.

    Args:
        margin: by so large a part the loss may be above the lowest of those compared with; None asks for nothing.
        published: the rounds compared with, beside the start, which is there before anything was learned.
        rolled_back_to: the round whose adapter is offered in place of a newer one; the loss must be below its.
    """
    if margin is None and rolled_back_to is None:
        return ""
    loss = losses.of(round)
    if loss is None:
        return "nobody has judged it, and only an adapter that is judged can be compared"
    if not math.isfinite(loss):
        return f"its {losses.name} is {loss}"
    if rolled_back_to is not None:
        known = losses.of(rolled_back_to)
        if known is None or not loss < known:
            than = "of which none is known" if known is None else f"with {known:.4g}"
            return f"its {losses.name} is {loss:.4g}, and the run is rolled back to round {rolled_back_to}, {than}"
    if margin is not None:
        compared = {number: losses.of(number) for number in {0, *published} - {round}}
        finite = {number: value for number, value in compared.items() if value is not None and math.isfinite(value)}
        if finite:
            lowest = min(finite, key=lambda number: (finite[number], number))
            if loss > finite[lowest] * (1 + margin):
                of = "the start" if lowest == 0 else f"round {lowest}"
                return (
                    f"its {losses.name} is {loss:.4g}, more than {margin:.0%} above that of {of}, {finite[lowest]:.4g} "
                    "(exchange.publish_margin)"
                )
    return ""
