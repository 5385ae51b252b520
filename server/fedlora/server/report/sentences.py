"""What the report says in words: each sentence is made of the run's own numbers and claims no more than they show."""

import math
from collections.abc import Sequence

from fedlora.server.report.drawing import MOST_DOTS
from fedlora.server.report.local_training import narrowed_rounds
from fedlora.server.report.numbers import (
    Gain,
    as_perplexity,
    client_gains,
    client_seconds,
    client_spread,
    clients_without_finite_loss,
    is_of_tokens,
    loss_of,
    mean_gain,
    mean_loss,
    overall_gain,
    refusals,
    trained,
    training_seconds_by_client,
    wall_seconds,
)
from fedlora.server.report.wording import (
    PERPLEXITY,
    count_text,
    duration_text,
    gain_text,
    is_percentage,
    list_text,
    loss_text,
    ranges_text,
    score_text,
    share_text,
    size_text,
)
from fedlora.server.round_report import RoundReport


def headline(reports: Sequence[RoundReport], metric_name: str, *, num_rounds: int) -> str:
    """Return the run's outcome in one sentence."""
    rounds = len(trained(reports))
    within = count_text(rounds, "round") if rounds >= num_rounds else f"{rounds} of the {num_rounds} planned rounds"
    of_tokens = is_of_tokens(reports)
    if (gain := overall_gain(reports)) is not None:
        where = f"{metric_name} on held-out examples"
        if gain.after is None:
            end = "No round is finished yet." if not rounds else "It was not judged again."
            return f"{_capital(where)} is {score_text(gain.before, metric_name)} before training. {end}"
        beside = _beside(overall_gain(reports, loss_of)) if of_tokens else ""
        return f"{_capital(where)} {_change(gain, metric_name)}{beside} in {within}."
    if clients := client_gains(reports):
        gain = mean_gain(clients)
        where = f"{metric_name} on the clients' own validation examples"
        if gain.before is None:
            return f"{_capital(where)} was {score_text(gain.after, metric_name)} after their last local training."
        beside = _beside(mean_gain(client_gains(reports, loss_of))) if of_tokens else ""
        return f"{_capital(where)} {_change(gain, metric_name)}{beside} in {within}."
    if not rounds:
        return "No round is finished yet."
    return f"{_capital(within)} finished. There is no held-out set and no validation, so there is no score to show."


def about_scores(reports: Sequence[RoundReport], metric_name: str) -> list[str]:
    """Return what the learning curve shows."""
    sentences = []
    if gain := overall_gain(reports):
        sentences.append(_about_held_out(reports, gain, metric_name))
        if peak := _about_peak(reports, metric_name):
            sentences.append(peak)
    if spreads := [spread for report in reports if (spread := client_spread(report)) is not None]:
        last = spreads[-1]
        sentences.append(
            f"The band is what the clients score on their own validation examples right after local training, "
            f"before anything is averaged: in round {last.round} from {score_text(last.lowest, metric_name)} "
            f"({last.lowest_client}) to {score_text(last.highest, metric_name)} ({last.highest_client})."
            if last.lowest_client != last.highest_client
            else "The thin line is the client's score on its own validation examples right after local training."
        )
    return sentences


def about_loss(reports: Sequence[RoundReport]) -> str:
    """Return what the loss did, and where it was not finite."""
    rounds = trained(reports)
    first, last = mean_loss(rounds[0]), mean_loss(rounds[-1])
    spoilt = {report.round: names for report in rounds if (names := clients_without_finite_loss(report))}
    text = (
        f"Mean training loss went from {loss_text(first)} in round {rounds[0].round} to {loss_text(last)} "
        f"in round {rounds[-1].round}."
        if len(rounds) > 1
        else f"Mean training loss was {loss_text(first)}."
    )
    if spoilt:
        names = sorted({name for clients in spoilt.values() for name in clients})
        text += f" It was not finite in round {ranges_text(spoilt)}, at {list_text(names)}: the gaps in the curve."
    return text


def about_perplexity(reports: Sequence[RoundReport]) -> str:
    """Return what perplexity is, and what it did on the held-out examples."""
    meaning = (
        "Perplexity is the exponential of the loss per answer token: among so many equally likely tokens the model "
        "hesitates at each."
    )
    losses = overall_gain(reports, loss_of)
    if losses is None or losses.after is None:
        return meaning
    return f"{meaning} On held-out examples it {_change(as_perplexity(losses), PERPLEXITY)}."


def about_memory(reports: Sequence[RoundReport]) -> str:
    """Return where want of memory made forward passes narrower than asked for; nothing where it did not."""
    narrowed = narrowed_rounds(reports)
    if not narrowed:
        return ""
    cases = []
    for name, sizes in narrowed.items():
        taken = list_text(map(str, sorted(set(sizes.values()))))
        cases.append(f"{name} in round{'s' if len(sizes) > 1 else ''} {ranges_text(sizes)} ({taken} a forward pass)")
    return (
        f"Memory did not suffice for as many examples a forward pass as asked for, and fewer were taken: "
        f"{list_text(cases)}. Their gradients add up to the same step, but not to the last bit: another run of this "
        "run file may differ in its last digits."
    )


def about_groups(gains: Sequence[Gain], metric_name: str) -> str:
    """Return who gained most and least."""
    moved = [(gain, gain.after - gain.before) for gain in gains if gain.after is not None and gain.before is not None]
    if not moved:
        return "Scores before training."
    worse, sign = ("higher", -1) if metric_name == PERPLEXITY else ("lower", 1)
    moved.sort(key=lambda pair: sign * pair[1])
    (least, _), (most, _) = moved[0], moved[-1]
    unit = " points" if is_percentage(metric_name) else ""
    if len(moved) == 1:
        return f"{least.name} gained {gain_text(least.before, least.after, metric_name)}{unit}."
    fell = sum(sign * change < 0 for _, change in moved)
    text = (
        f"Most was gained by {most.name} ({gain_text(most.before, most.after, metric_name)}{unit}), "
        f"least by {least.name} ({gain_text(least.before, least.after, metric_name)}{unit})."
    )
    return text + (
        f" {fell} of {len(moved)} ended {worse} than they began." if fell else f" None ended {worse} than it began."
    )


def about_time(reports: Sequence[RoundReport]) -> list[str]:
    """Return where the wall time went, and how far the clients' training times lie apart."""
    phases = wall_seconds(reports)
    total = sum(phases.values())
    parts = [
        f"{phase} {duration_text(seconds)} ({share_text(seconds / total)})"
        for phase, seconds in phases.items()
        if total
    ]
    sentences = [f"The rounds took {duration_text(total)}: {list_text(parts, limit=6)}." if parts else ""]
    clients = training_seconds_by_client(reports)
    if len(clients) > 1:
        slow, fast = max(clients, key=lambda name: clients[name]), min(clients, key=lambda name: clients[name])
        sentences.append(
            f"A round's training took {duration_text(clients[slow])} on average at {slow}, the slowest, and "
            f"{duration_text(clients[fast])} at {fast}, the fastest."
        )
    if client_seconds(reports):
        sentences.append("Clients may train side by side, so their summed time can exceed the wall time.")
    return [sentence for sentence in sentences if sentence]


def about_traffic(reports: Sequence[RoundReport]) -> str:
    """Return how many adapter bytes travelled."""
    down, up = sum(report.bytes_down for report in reports), sum(report.bytes_up for report in reports)
    return f"{size_text(down)} of adapters went to the clients, {size_text(up)} came back."


def about_refusals(reports: Sequence[RoundReport]) -> str:
    """Return how many updates were left out of the average."""
    count = sum(len(refusal.rounds) for refusal in refusals(reports))
    asked = sum(len(report.cohort) for report in reports)
    return (
        f"{count_text(count, 'update')} of the {asked:,} asked for {'is' if count == 1 else 'are'} not in any average: "
        "refused on arrival, failed at the client, or never sent."
    )


def _about_held_out(reports: Sequence[RoundReport], gain: Gain, metric_name: str) -> str:
    scored = {report.round: report.held_out for report in reports if report.held_out is not None}
    samples = [held_out.overall.num_examples for held_out in scored.values() if not held_out.is_complete]
    whole = {at: held_out.overall.num_examples for at, held_out in scored.items() if held_out.is_complete}
    text = f"The bold line is the averaged adapter's {metric_name} on held-out examples, "
    if samples and whole:
        filled, hollow = (" (filled dots)", " (hollow)") if len(scored) <= MOST_DOTS else ("", "")
        text += (
            f"judged on all {max(whole.values()):,} {list_text(map(_moment, whole))}{filled}, "
            f"and on a sample of {samples[-1]:,} otherwise{hollow}."
        )
    elif samples:
        text += f"judged on a sample of {samples[-1]:,}."
    else:
        text += f"judged on all {max(whole.values()):,}."
    if gain.after is not None and (min(scored) in whole) != (max(scored) in whole):
        text += " The first and the last score are of different examples; read their difference with care."
    return text


def _moment(at: int) -> str:
    return f"after round {at}" if at else "before training"


def _about_peak(reports: Sequence[RoundReport], metric_name: str) -> str:
    """Return which round scored highest, where that is not the last."""
    scores = {
        r.round: r.held_out for r in reports if r.held_out is not None and math.isfinite(r.held_out.overall.metric)
    }
    if len(scores) < 3:
        return ""
    peak = max(scores, key=lambda at: scores[at].overall.metric)
    if peak == max(scores):
        return ""
    on = "" if scores[peak].is_complete else ", on its sample"
    return f"The highest score was {score_text(scores[peak].overall.metric, metric_name)} after round {peak}{on}."


def _beside(losses: Gain | None) -> str:
    """Return what perplexity did, to follow what the metric did."""
    if losses is None or losses.before is None or losses.after is None:
        return ""
    return f", and perplexity {_change(as_perplexity(losses), PERPLEXITY)},"


def _change(gain: Gain, metric_name: str) -> str:
    before, after = score_text(gain.before, metric_name), score_text(gain.after, metric_name)
    if before == after:
        return f"stayed at {after}"
    change = (gain.after or 0.0) - (gain.before or 0.0)
    verb = "went" if not math.isfinite(change) else "rose" if change > 0 else "fell"
    return f"{verb} from {before} to {after}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
