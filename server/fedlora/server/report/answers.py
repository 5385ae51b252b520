"""The report's section on generated answers: how many are right before and after, and some to read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedlora.common.messages import Generated
from fedlora.server.record.round_report import RoundReport
from fedlora.server.report.content import Section, table
from fedlora.server.report.gains import gains_chart, rows_of, score_columns
from fedlora.server.report.numbers import Gain, first_and_last, held_outs
from fedlora.server.report.wording import capital, count_text, score_text

EXACT, ROUGE = "exact match", "ROUGE-L"
_MEASURES: Mapping[str, Callable[[Generated], float]] = {
    EXACT: lambda part: part.exact_match,
    ROUGE: lambda part: part.rouge_l,
}


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
    found = [held_out.generated_overall for held_out in held_outs(reports).values()]
    tables = [{"all prompts": overall} for overall in found if overall is not None]
    if not tables:
        return None
    (exact,), (rouge,) = (first_and_last(tables, of) for of in _MEASURES.values())
    return exact, rouge


def answers(reports: Sequence[RoundReport]) -> Section | None:
    """Return the scores of the generated answers, overall and by group; nothing where none were generated."""
    overall = generated_gains(reports)
    if overall is None:
        return None
    tables = [held_out.generated for held_out in held_outs(reports).values() if held_out.generated]
    groups = {name: first_and_last(tables, of) for name, of in _MEASURES.items()}
    if len(groups[EXACT]) < 2:
        groups = {name: [] for name in groups}
    columns = [
        ("group", lambda row: row[EXACT].name or "(no name)"),
        ("prompts", lambda row: f"{row[EXACT].num_examples:,}"),
        *(column for name in _MEASURES for column in score_columns(name, prefix=f"{name} ")),
    ]
    totals = rows_of({name: [gain] for name, gain in zip(_MEASURES, overall, strict=True)})
    return Section(
        "Generated answers",
        [[_about(*overall)]],
        [
            gains_chart(f"{capital(name)} by group", gains, name, noun="group")
            for name, gains in groups.items()
            if gains
        ],
        table=table("Generated answers against the given ones", columns, rows_of(groups), totals=totals),
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
