"""The whole report as one HTML page that needs no network and no script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.aggregation import aggregation
from fedlora.server.report.answers import ShownAnswer, answers
from fedlora.server.report.clients import groups_and_clients
from fedlora.server.report.flagged import flagged
from fedlora.server.report.headline import facts, headline, refused
from fedlora.server.report.holdings import Holdings, who_holds_what
from fedlora.server.report.learning import learning
from fedlora.server.report.privacy import privacy
from fedlora.server.report.sums import secure_sums
from fedlora.server.report.templating import template
from fedlora.server.report.times import times
from fedlora.server.report.withheld import not_published

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class ShownExample:
    """One held-out example for the report's gallery.

    Attributes:
        group: its domain, language or site; empty where there are none.
        label: the true one.
        before, after: the labels predicted before training and at the end.
        picture_png, text: what the model saw; exactly one is given.
    """

    group: str
    label: str
    before: str
    after: str
    picture_png: bytes | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if (self.picture_png is None) == (self.text is None):
            raise ValueError("a shown example has either a picture or a text")


def render_report(
    *,
    title: str,
    subtitle: str,
    metric_name: str,
    num_rounds: int,
    reports: Sequence[RoundReport],
    config_toml: str,
    worked: float = 0.0,
    examples: Sequence[ShownExample] = (),
    shown_answers: Sequence[ShownAnswer] = (),
    holdings: Holdings | None = None,
    load_code: str = "",
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
    unpublished: Mapping[int, str] | None = None,
) -> str:
    """Return the report as the text of one HTML file.

    Args:
        title: the run's name.
        subtitle: the run in a line: clients, model, rank, method.
        metric_name: an accuracy is shown in percent, any other name as a number.
        num_rounds: that were planned, of which `reports` may hold fewer.
        reports: all rounds so far in their order, at least the start.
        config_toml: the run file.
        worked: the seconds of all processes that have worked on the run, as far as they are recorded.
        examples: held-out examples with their predictions before training and at the end.
        shown_answers: held-out prompts with the answers generated before training and at the end.
        holdings: who holds what.
        load_code: the Python that loads the adapter.
        notes: on the run file, in a line each, such as settings that do nothing.
        versions: of the software, by name.
        unpublished: by round, why its adapter is not published.

    Raises:
        ValueError: `reports` is empty.
    """
    if not reports:
        raise ValueError("a report needs at least one round report")
    return _template().render(
        title=title,
        subtitle=subtitle,
        headline=headline(reports, metric_name, num_rounds=num_rounds),
        facts=facts(reports, metric_name, num_rounds=num_rounds, worked=worked),
        learning=learning(reports, metric_name, num_rounds=num_rounds),
        clients=groups_and_clients(reports, metric_name),
        answers=answers(reports),
        shown_answers=shown_answers,
        examples=_by_change(examples),
        holdings=who_holds_what(holdings),
        aggregation=aggregation(reports),
        sums=secure_sums(reports),
        times=times(reports, worked),
        privacy=privacy(reports),
        refused=refused(reports),
        flagged=flagged(reports),
        unpublished=not_published(unpublished or {}),
        load_code=load_code,
        notes=notes,
        config_toml=config_toml,
        versions=versions or {},
    )


def _by_change(examples: Sequence[ShownExample]) -> dict[str, list[ShownExample]]:
    """Return examples by what training changed about them."""
    kinds = {(False, True): "Now right", (False, False): "Still wrong", (True, False): "Now wrong"}
    found: dict[str, list[ShownExample]] = {kind: [] for kind in (*kinds.values(), "Right before and after")}
    for example in examples:
        change = example.before == example.label, example.after == example.label
        found[kinds.get(change, "Right before and after")].append(example)
    return {kind: shown for kind, shown in found.items() if shown}


@cache
def _template() -> "Template":
    return template(__package__, "report.html.j2")
