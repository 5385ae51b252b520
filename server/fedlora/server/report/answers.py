"""The report's section on generated answers: how many are right before and after, and some to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlora.common.messages import Generated
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.content import Section, table
from fedlora.server.report.gains import gains_chart, rows_of, score_columns
from fedlora.server.report.numbers import Gain
from fedlora.server.report.wording import capital, count_text, score_text

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


def answers(reports: Sequence[RoundReport]) -> Section | None:
    """Return the scores of the generated answers, overall and by group; nothing where none were generated."""
    overall = generated_gains(reports)
    if overall is None:
        return None
    tables = [
        report.held_out.generated for report in reports if report.held_out is not None and report.held_out.generated
    ]
    groups = _by_group(tables[0], tables[-1] if tables[1:] else {}) if tables else []
    by_measure = {
        name: [gains[place] for gains in groups] if len(groups) > 1 else [] for place, name in enumerate((EXACT, ROUGE))
    }
    columns = [
        ("group", lambda row: row[EXACT].name),
        ("prompts", lambda row: f"{row[EXACT].num_examples:,}"),
        *(column for name in (EXACT, ROUGE) for column in score_columns(name, prefix=f"{name} ")),
    ]
    return Section(
        "Generated answers",
        [_about(*overall)],
        [
            gains_chart(f"{capital(name)} by group", gains, name, noun="group")
            for name, gains in by_measure.items()
            if gains
        ],
        table=table(
            "Generated answers against the given ones",
            columns,
            rows_of(by_measure),
            totals=[dict(zip(by_measure, overall, strict=True))],
        ),
    )


def _about(exact: Gain, rouge: Gain) -> str:
    def course(gain: Gain, name: str) -> str:
        after = "" if gain.after is None else f" and {score_text(gain.after, name)} after"
        return f"{score_text(gain.before, name)} before training{after}"

    return (
        f"{count_text(exact.num_examples, 'held-out prompt')} were answered by the most likely token at each place. "
        f"Equal to the given answer were {course(exact, EXACT)}. ROUGE-L, the longest common sequence of words as a "
        f"share from 0 to 1, was {course(rouge, ROUGE)}."
    )


def _by_group(first: Mapping[str, Generated], last: Mapping[str, Generated]) -> list[tuple[Gain, Gain]]:
    return [_gains(name or "(no name)", part, last.get(name)) for name, part in first.items()]


def _gains(name: str, before: Generated, after: Generated | None) -> tuple[Gain, Gain]:
    later = after or before
    return (
        Gain(name, later.num_examples, before.exact_match, after.exact_match if after else None),
        Gain(name, later.num_examples, before.rouge_l, after.rouge_l if after else None),
    )
