"""The report's beginning: the run's outcome in a sentence and its key figures; and at its end, what was refused."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.server.record.round_report import RoundReport
from fedlora.server.record.totals import round_seconds, run_seconds, trained
from fedlora.server.report.content import Columns, Section, table
from fedlora.server.report.gains import points
from fedlora.server.report.local_training import tokens_by_client
from fedlora.server.report.numbers import Gain, Refusals, by_measure, client_gains, mean_gain, overall_gain, refusals
from fedlora.server.report.validation import best_of, validation_by_round
from fedlora.server.report.wording import (
    PERPLEXITY,
    amount_text,
    capital,
    change_text,
    count_text,
    duration_text,
    gain_text,
    ranges_text,
    reason_text,
    score_text,
    size_text,
)


@dataclass(frozen=True)
class Fact:
    """A key figure of the run: its name, its value in words, and a note on it."""

    name: str
    value: str
    note: str = ""


def headline(reports: Sequence[RoundReport], metric_name: str, *, num_rounds: int) -> str:
    """Return the run's outcome in one sentence."""
    rounds = len(trained(reports))
    within = count_text(rounds, "round") if rounds >= num_rounds else f"{rounds} of the {num_rounds} planned rounds"
    where, found = "held-out examples", _held_out(reports, metric_name)
    if not found:
        where, found = "the clients' own validation examples", _on_validation(reports, metric_name)
    if not found:
        nothing = "There is no held-out set and no validation, so there is no score to show."
        return f"{capital(within)} finished. {nothing}" if rounds else "No round is finished yet."
    gain, *perplexities = found.values()
    subject = f"{capital(metric_name)} on {where}"
    if gain.before is None:
        return f"{subject} was {score_text(gain.after, metric_name)} after their last local training."
    if gain.after is None:
        end = "It was not judged again." if rounds else "No round is finished yet."
        return f"{subject} is {score_text(gain.before, metric_name)} before training. {end}"
    beside = "".join(f", and perplexity {change_text(p.before, p.after, PERPLEXITY)}," for p in perplexities)
    return f"{subject} {change_text(gain.before, gain.after, metric_name)}{beside} in {within}."


def facts(reports: Sequence[RoundReport], metric_name: str, *, num_rounds: int, worked: float) -> list[Fact]:
    """Return the run's key figures; `worked` is the seconds of all its processes."""
    found = []
    for name, gain in _held_out(reports, metric_name).items():
        note = "" if gain.after is None else f"{gain_text(gain.before, gain.after, name)}{points(name)}"
        if name == PERPLEXITY and gain.after is not None:
            note = f"from {score_text(gain.before, name)}"
        if name == metric_name or gain.after is not None:
            latest = gain.before if gain.after is None else gain.after
            found.append(Fact(f"held-out {name}", score_text(latest, name), note))
    rounds = trained(reports)
    best = best_of(validation_by_round(reports))
    ended = ", ended early" if reports[-1].ended_early else ""
    note = f"best by validation: {best}{ended}" if rounds and best else ""
    found.append(Fact("rounds", f"{len(rounds)} of {num_rounds}", note))
    if rounds:
        num_refused = sum(len(report.refused) for report in rounds)
        note = f"{count_text(num_refused, 'update')} refused" if num_refused else ""
        asked = {name for report in rounds for name in report.cohort}
        found.append(Fact("clients", str(len(asked)), note))
    if (spent := reports[-1].epsilon) is not None:
        found.append(Fact("epsilon", f"{spent:.2f}", "of each client, by the adapters alone"))
    note = f"{duration_text(round_seconds(reports[-1]))} for the last round" if rounds else ""
    found.append(Fact("time", duration_text(run_seconds(reports, worked)), note))
    if rounds:
        down, up = sum(report.bytes_down for report in reports), sum(report.bytes_up for report in reports)
        found.append(Fact("adapters sent", size_text(down + up), f"{size_text(down)} down, {size_text(up)} up"))
    if tokens := sum(tokens_by_client(reports).values()):
        found.append(Fact("answer tokens", amount_text(tokens), "trained on, by all clients"))
    return found


def refused(reports: Sequence[RoundReport]) -> Section | None:
    """Return the updates that are not in any average; nothing where there are none."""
    found = refusals(reports)
    if not found:
        return None
    columns: Columns[Refusals] = (
        ("client", lambda each: each.client),
        ("reason", lambda each: reason_text(each.reason)),
        ("in round", lambda each: ranges_text(each.rounds)),
        ("updates", lambda each: str(len(each.rounds))),
    )
    count, asked = sum(len(each.rounds) for each in found), sum(len(report.cohort) for report in reports)
    about = (
        f"{count_text(count, 'update')} of the {asked:,} asked for {'is' if count == 1 else 'are'} not in any average: "
        "refused on arrival, failed at the client, or never sent."
    )
    numbers = table("By client and reason", columns, found, num_text_columns=3)
    return Section("Refused updates", [[about]], table=numbers)


def _held_out(reports: Sequence[RoundReport], metric_name: str) -> dict[str, Gain]:
    """Return what the held-out set gained overall, by measure; empty where there is none."""
    found = by_measure(reports, metric_name, lambda of: [gain] if (gain := overall_gain(reports, of)) else [])
    return {name: gains[0] for name, gains in found.items() if gains}


def _on_validation(reports: Sequence[RoundReport], metric_name: str) -> dict[str, Gain]:
    """Return what the clients gained on the mean by their own validation, by measure; empty where there is none."""
    found = by_measure(
        reports, metric_name, lambda of: [mean_gain(each)] if (each := client_gains(reports, of)) else []
    )
    return {name: gains[0] for name, gains in found.items() if gains}
