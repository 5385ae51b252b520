"""What a terminal shows of a run that is over: its scores as a table, and what there is to say of it in lines. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fedlora.common.messages import Score
from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import is_of_tokens
from fedlora.server.report.answers import EXACT, ROUGE, generated_gains
from fedlora.server.report.numbers import (
    Gain,
    as_perplexity,
    client_gains,
    group_gains,
    loss_of,
    mean_gain,
    refusals,
    total_gains,
)
from fedlora.server.report.validation import best_of, validation_by_round
from fedlora.server.report.wording import (
    PERPLEXITY,
    count_text,
    error_texts,
    gain_text,
    is_percentage,
    loss_text,
    score_text,
)

# Of more groups than twice so many, those with the lowest and the highest scores are printed.
_MOST_GROUPS_AT_AN_END = 8


def scores_table(reports: Sequence[RoundReport], metric_name: str) -> Table | None:
    """Return the scores by held-out group, else by client on its own validation; None without any.

    Beside the metric of a language model stands its perplexity.
    """
    gains, noun = group_gains(reports), "group"
    totals = total_gains(reports)
    losses = [*group_gains(reports, loss_of), *total_gains(reports, loss_of)]
    if totals:
        title = f"{metric_name} on held-out examples"
        gains = gains if len(gains) > 1 else []
    elif gains := client_gains(reports):
        title, noun = f"{metric_name} on each client's own validation examples", "client"
        totals = [mean_gain(gains, noun="client")]
        losses = client_gains(reports, loss_of)
        losses.append(mean_gain(losses, noun="client"))
    else:
        return None
    perplexities = {gain.name: as_perplexity(gain) for gain in losses} if is_of_tokens(reports) else {}
    unit = "gain, points" if is_percentage(metric_name) else "gain"
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column(noun)
    for name in ("examples", "before", "after", unit, *((f"{PERPLEXITY}\nbefore", "\nafter") if perplexities else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for gain in _ends(gains):
        table.add_row(
            *_cells(gain, metric_name, perplexities)
            if gain
            else [Text(f"({len(gains) - 2 * _MOST_GROUPS_AT_AN_END} between)")]
        )
    table.add_section()
    for total in totals:
        table.add_row(*_cells(total, metric_name, perplexities), style="bold")
    return table


def outcome_lines(reports: Sequence[RoundReport]) -> Iterator[tuple[str, str]]:
    """Yield what there is to say beside the scores, each a name and words: answers, best round, early end."""
    if (generated := generated_gains(reports)) is not None:
        exact, rouge = generated
        prompts = count_text(exact.num_examples, "prompt")
        yield "answers", f"{EXACT} {_course(exact, EXACT)}, {ROUGE} {_course(rouge, ROUGE)}, on {prompts}"
    scores = validation_by_round(reports)
    if (best := best_of(scores)) is not None:
        yield "best round", _best(scores, best)
    if reports and reports[-1].ended_early:
        yield "ended early", f"after round {reports[-1].round}: {reports[-1].why_ended}"
    if reports and (spent := reports[-1].epsilon) is not None:
        yield "epsilon", f"{spent:.2f} of each client, by the adapters alone; scores and losses are not noised"


def refusal_lines(reports: Sequence[RoundReport]) -> Iterator[tuple[str, str]]:
    """Yield how many updates were refused, if any were."""
    if num_refused := sum(len(refusal.rounds) for refusal in refusals(reports)):
        yield "refused", f"{count_text(num_refused, 'update')}; the report says whose and why"


def _best(scores: Mapping[int, Score], best: int) -> str:
    last = max(scores)
    if best == last:
        return f"{best}, the last: validation loss {loss_text(scores[best].loss)}"
    texts = error_texts(scores[best].loss, scores[last].loss)
    return f"{best or 'none, the start is better'}: validation loss {texts[0]} ({texts[1]} after round {last})"


def _course(gain: Gain, name: str) -> str:
    texts = [score_text(value, name) for value in (gain.before, gain.after) if value is not None]
    return " -> ".join(texts)


def _ends(gains: Sequence[Gain]) -> list[Gain | None]:
    """Return all, or of very many the lowest and the highest with None between."""
    if len(gains) <= 2 * _MOST_GROUPS_AT_AN_END:
        return list(gains)
    ordered = sorted(gains, key=lambda gain: gain.after if gain.after is not None else gain.before or 0.0)
    return [*ordered[:_MOST_GROUPS_AT_AN_END], None, *ordered[-_MOST_GROUPS_AT_AN_END:]]


def _cells(gain: Gain, metric_name: str, perplexities: dict[str, Gain]) -> list[Text]:
    texts = [
        gain.name or "(no name)",
        f"{gain.num_examples:,}",
        score_text(gain.before, metric_name),
        score_text(gain.after, metric_name),
        gain_text(gain.before, gain.after, metric_name),
    ]
    if perplexities:
        beside = perplexities.get(gain.name)
        texts += [
            score_text(value, PERPLEXITY) for value in ((beside.before, beside.after) if beside else (None, None))
        ]
    return [Text(text) for text in texts]
