"""A comparison as `report.html`: one page that needs no network and no script."""

from functools import cache
from typing import TYPE_CHECKING

from fedlora.comparison import charts, cost_charts, curves, finding, tables
from fedlora.comparison.evaluation import Evaluation, evaluate
from fedlora.comparison.results import Comparison
from fedlora.comparison.wording import amount_text, mean_text, unit_of
from fedlora.server.report.content import Section, Table
from fedlora.server.report.headline import Fact
from fedlora.server.report.templating import template
from fedlora.server.report.wording import count_text

if TYPE_CHECKING:
    from jinja2 import Template


def render(comparison: Comparison, *, target: float | None = None) -> str:
    """Return the page's text.

    Args:
        comparison: finished or not.
        target: of the metric, which rounds and megabytes are counted to; without it the baseline's mean.

    Raises:
        ValueError: the baseline is no method among the variants.
    """
    evaluation = evaluate(comparison, target=target)
    sections = (_differences, _scores, _courses, _costs, _groups_and_clients, _errors, _runs, _left_out, _settings)
    return _template().render(
        title=comparison.title,
        subtitle=_subtitle(evaluation),
        headline=finding.headline(evaluation),
        facts=_facts(evaluation),
        sections=[shown for section in sections if (shown := section(evaluation)) is not None],
        command=comparison.command,
    )


def _subtitle(evaluation: Evaluation) -> str:
    comparison = evaluation.comparison
    methods = count_text(len(evaluation.methods), "variant")
    return f"{methods} over {count_text(comparison.num_draws, 'draw')}, compared with {comparison.baseline}"


def _facts(evaluation: Evaluation) -> list[Fact]:
    comparison, name = evaluation.comparison, evaluation.comparison.metric_name
    counting = sum(len(row.runs) for row in (*evaluation.methods, *evaluation.references))
    planned = comparison.num_draws * len(comparison.variants)
    out = len(evaluation.broken) + len(evaluation.without_score)
    found = [
        Fact("runs that count", f"{counting} of {planned}", f"{out} left out" if out else ""),
        Fact(f"{name} of {comparison.baseline}", mean_text(evaluation.baseline.metric, name), "mean, last round"),
    ]
    if differences := evaluation.differences:
        shown = sum(each.is_shown for each in differences.values())
        found.append(Fact("differences shown", f"{shown} of {len(differences)}", "corrected for as many"))
        if smallest := [each.smallest for each in differences.values() if each.smallest is not None]:
            low, high = (amount_text(value, name) for value in (min(smallest), max(smallest)))
            text = low if low == high else f"{low} to {high}"
            about = f"{unit_of(name)}, power 80 %, corrected for as many"
            found.append(Fact("smallest that can be shown", text, about))
    return found


def _differences(evaluation: Evaluation) -> Section | None:
    if not evaluation.differences:
        return None
    drawn = [charts.differences(evaluation), charts.scores(evaluation)]
    return Section(
        "Differences, paired by draw",
        [[finding.about_metric(evaluation)]],
        drawn,
        parts=[
            *_tables(evaluation, tables.differences(evaluation)),
            Section(paragraphs=[[finding.about_tests(evaluation)]], notes=finding.alike(evaluation)),
        ],
    )


def _scores(evaluation: Evaluation) -> Section:
    parts = _tables(evaluation, tables.scores(evaluation))
    if evaluation.references:
        parts.append(Section(table=tables.scores(evaluation, of_references=True)))
        if about := finding.about_references(evaluation):
            parts.append(Section(paragraphs=[[about]]))
    return Section("Scores", parts=parts)


def _courses(evaluation: Evaluation) -> Section | None:
    drawn = curves.courses(evaluation)
    if not drawn:
        return None
    about = (
        "Means over the draws with their intervals of 95 % (BCa) where there are three or more, each round's for "
        f"itself. Above, {evaluation.comparison.metric_name}; below, the difference of the same draws. Draws may "
        "differ more than variants do, so the intervals above may overlap where those below do not hold zero."
    )
    return Section("Round by round", [[about]], drawn, layout="many", has_one_legend=True)


def _costs(evaluation: Evaluation) -> Section:
    about = finding.about_costs(evaluation)
    drawn = cost_charts.costs(evaluation)
    return Section("What it costs", [[about]], drawn, parts=_tables(evaluation, tables.costs(evaluation)))


def _groups_and_clients(evaluation: Evaluation) -> Section | None:
    found = _tables(evaluation, tables.groups(evaluation), tables.clients(evaluation))
    return Section("Groups and clients", [[finding.about_parts()]], parts=found) if found else None


def _errors(evaluation: Evaluation) -> Section | None:
    drawn = curves.errors(evaluation)
    if not drawn:
        return None
    about = (
        "Averaging A and B separately does not give the average of the clients' products B·A. The error is the "
        "distance between the two, relative to the size of that exact average, before and after the method's "
        "correction. A smaller error is not by itself a better model."
    )
    parts = _tables(evaluation, tables.errors(evaluation))
    if layers := curves.layer_errors(evaluation):
        parts.append(
            Section(
                "By block, in the last round",
                [["Means over the modules of a block and over the draws."]],
                layers,
                layout="many",
                has_one_legend=True,
                table=tables.layer_errors(evaluation),
                summary="Every layer in numbers",
            )
        )
    return Section("Error of the average", [[about]], drawn, layout="many", has_one_legend=True, parts=parts)


def _runs(evaluation: Evaluation) -> Section:
    every = Section(table=tables.draws(evaluation), summary="The last metric of every run")
    return Section("Every run", [[finding.about_power(evaluation)]], parts=[every])


def _left_out(evaluation: Evaluation) -> Section | None:
    notes = finding.left_out(evaluation)
    return Section("Left out", notes=notes) if notes else None


def _settings(evaluation: Evaluation) -> Section:
    return Section("Settings", [[finding.about_tuning(evaluation)]], parts=[Section(table=tables.settings(evaluation))])


def _tables(evaluation: Evaluation, *shown: Table | None) -> list[Section]:
    """Return each table with what so many draws can show below it; nothing for a table without a row."""
    found = [each for each in shown if each is not None and each.rows]
    below = Section(paragraphs=[[finding.about_power(evaluation)]])
    return [part for each in found for part in (Section(table=each), below)]


@cache
def _template() -> "Template":
    return template(__package__, "comparison.html.j2")
