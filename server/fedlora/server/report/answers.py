"""The report's section on generated answers: how many are right before and after, and some to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlora.common.messages import Generated
from fedlora.server.report.markup import NOTHING, Html, element, figure, join, paragraph, section, table
from fedlora.server.report.numbers import Gain
from fedlora.server.report.score_charts import before_and_after
from fedlora.server.report.wording import UNKNOWN, count_text, score_text
from fedlora.server.round_report import RoundReport

_MOST_CHARACTERS = 600
EXACT, ROUGE = "exact match", "ROUGE-L"


@dataclass(frozen=True)
class ShownAnswer:
    """One held-out prompt for the report, with what was answered.

    Attributes:
        group: its domain, language or site; empty where there are none.
        prompt, reference: what was asked, and the given answer.
        before, after: the answers generated before training and at the end; None where there is none.
    """

    group: str
    prompt: str
    reference: str
    before: str | None
    after: str | None


def generated_gains(reports: Sequence[RoundReport]) -> tuple[Gain, Gain] | None:
    """Return the first and the last share of exact matches, and the same of ROUGE-L; None without generated answers."""
    found = [
        report.held_out.generated_overall
        for report in reports
        if report.held_out is not None and report.held_out.generated_overall is not None
    ]
    if not found:
        return None
    return _gains("all prompts", found[0], found[-1] if found[1:] else None)


def answers(reports: Sequence[RoundReport], shown: Sequence[ShownAnswer]) -> Html:
    """Return the scores of the generated answers, overall and by group, and the answers given to read."""
    overall = generated_gains(reports)
    if overall is None and not shown:
        return NOTHING
    content: list[Html] = []
    if overall is not None:
        content += [paragraph(_about(*overall)), _scores(reports, overall)]
    if shown:
        content += [
            element("h3", "Some of them"),
            element("ul", *map(_answer, shown), class_="examples"),
        ]
    return section("Generated answers", *content)


def _about(exact: Gain, rouge: Gain) -> str:
    def course(gain: Gain, name: str) -> str:
        after = "" if gain.after is None else f" and {score_text(gain.after, name)} after"
        return f"{score_text(gain.before, name)} before training{after}"

    return (
        f"{count_text(exact.num_examples, 'held-out prompt')} were answered by the most likely token at each place. "
        f"Equal to the given answer were {course(exact, EXACT)}. ROUGE-L, the longest common sequence of words as a "
        f"share from 0 to 1, was {course(rouge, ROUGE)}."
    )


def _scores(reports: Sequence[RoundReport], overall: tuple[Gain, Gain]) -> Html:
    tables = [
        report.held_out.generated for report in reports if report.held_out is not None and report.held_out.generated
    ]
    groups = _by_group(tables[0], tables[-1] if tables[1:] else {}) if tables else []
    groups = groups if len(groups) > 1 else []
    rows = [
        [exact.name, f"{exact.num_examples:,}", *_texts(exact, EXACT), *_texts(rouge, ROUGE)]
        for exact, rouge in (*groups, overall)
    ]
    head = ("group", "prompts", f"{EXACT} before", "after", f"{ROUGE} before", "after")
    numbers = table("Generated answers against the given ones", head, rows, num_total_rows=1)
    if not groups:
        return numbers
    keys = [("ring grey", "before"), ("blue", "after")]
    charts = [
        figure(
            f"{name[:1].upper()}{name[1:]} by group",
            before_and_after(gains, name, noun="group", description=f"Generated answers: {name} by group."),
            keys=keys,
        )
        for name, gains in ((EXACT, [exact for exact, _ in groups]), (ROUGE, [rouge for _, rouge in groups]))
    ]
    return join((element("div", *charts, class_="pair"), numbers))


def _by_group(first: Mapping[str, Generated], last: Mapping[str, Generated]) -> list[tuple[Gain, Gain]]:
    return [_gains(name or "(no name)", part, last.get(name)) for name, part in first.items()]


def _gains(name: str, before: Generated, after: Generated | None) -> tuple[Gain, Gain]:
    later = after or before
    return (
        Gain(name, later.num_examples, before.exact_match, after.exact_match if after else None),
        Gain(name, later.num_examples, before.rouge_l, after.rouge_l if after else None),
    )


def _texts(gain: Gain, name: str) -> tuple[str, str]:
    return score_text(gain.before, name), score_text(gain.after, name)


def _answer(shown: ShownAnswer) -> Html:
    lines = (("given", shown.reference), ("now", shown.after), ("before", shown.before))
    words = [
        element("span", element("span", name, class_="name"), UNKNOWN if text is None else _cut(text))
        for name, text in lines
    ]
    group = element("span", shown.group, class_="group") if shown.group else NOTHING
    return element("li", element("blockquote", _cut(shown.prompt)), *words, group, class_="text answer")


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
