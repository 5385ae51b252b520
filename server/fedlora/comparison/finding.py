"""The finding of a comparison in words, which say no more than its draws carry. Pure."""

from collections.abc import Mapping
from itertools import combinations

from fedlora.comparison.evaluation import Difference, Evaluation, Row
from fedlora.comparison.results import Variant
from fedlora.comparison.statistics import Interval, can_show, smallest_p
from fedlora.comparison.wording import (
    amount_text,
    better_if,
    interval_text,
    is_lower_better,
    p_text,
    settings_text,
    signed_text,
    with_unit,
)
from fedlora.server.report.wording import capital, count_text, is_percentage, list_text, ranges_text, score_text


def headline(evaluation: Evaluation) -> str:
    """Return what the comparison found, in a sentence."""
    differences = evaluation.differences
    baseline, metric_name = evaluation.comparison.baseline, evaluation.comparison.metric_name
    if not differences:
        return f"Nothing can be compared with {baseline}: no draw has a run of it and of another method."
    leads = _leads(evaluation)
    shown = {name: lead for name, lead in leads.items() if differences[name].is_shown}
    ahead = [name for name, lead in shown.items() if lead > 0]
    if ahead:
        best = max(ahead, key=leads.__getitem__)
        return (
            f"{best} is ahead of {baseline} by {_by(differences[best], metric_name)}.{_more(len(ahead), differences)}"
        )
    if shown:
        last = min(shown, key=leads.__getitem__)
        behind = f"{last} is behind by {_by(differences[last], metric_name)}."
        return f"Nothing is shown to be ahead of {baseline}; {behind}{_more(len(shown), differences)}"
    draws = _draws(differences)
    if not any(can_show(each.values.num, num_tests=len(differences)) for each in differences.values()):
        best = max(leads, key=leads.__getitem__)
        return f"{_lead(best, evaluation)}, but {draws} cannot show a difference."
    largest = max(differences, key=lambda name: abs(differences[name].values.mean))
    each = differences[largest]
    size = with_unit(signed_text(each.values.mean, metric_name), metric_name)
    p = f"p = {p_text(each.corrected_p)}"
    which = f"the largest is {size} ({p} by Holm), of {largest}" if len(differences) > 1 else f"{largest}: {size} ({p})"
    return f"No difference from {baseline} is shown in {draws}; {which}."


def about_power(evaluation: Evaluation) -> str:
    """Return what so many draws can show at all, which stands beside each table."""
    differences = evaluation.differences
    if not differences:
        return "Without a common draw no difference can be shown."
    draws, smallest = _draws(differences), _smallest(evaluation)
    tests = count_text(len(differences), "comparison")
    most = max(each.values.num for each in differences.values())
    lowest = f"{smallest_p(most):.3g}"
    if not can_show(most, num_tests=len(differences)):
        corrected = f"{min(1.0, len(differences) * smallest_p(most)):.3g}"
        return (
            f"{capital(draws)} can show no difference of whatever size: no p is below {lowest}, or {corrected} by "
            f"Holm's correction for {tests}, and 0.05 is called significant."
        )
    size = (
        f"The smallest difference that {draws} show in {evaluation.comparison.metric_name} over the whole test set "
        f"(5 %, power 80 %, corrected for {tests}) is {smallest}"
        if smallest
        else "What difference could be shown is not known: that takes draws that are not all alike"
    )
    return f"{size}; the smallest p that {most} can reach is {lowest}."


def about_tests(evaluation: Evaluation) -> str:
    """Return how the differences are tested, and for how many at once they are corrected."""
    count = count_text(len(evaluation.differences), "comparison")
    return (
        "Differences are paired: runs of one draw have the same partition, first adapter and batches. p is that of the "
        "two-sided sign-flip test. These are multiple comparisons: beside each p stands the one corrected by Holm for "
        f"{count} with the baseline. A difference is called shown where the corrected p is at most 0.05 and the "
        "interval of 95 % (BCa bootstrap, of that difference alone) does not hold zero. Whoever looks, and asks "
        "for more draws because of what was seen, gets a smaller p than there should be. The largest of several "
        "differences tends to overstate itself, and intervals of fewer than about ten draws are too narrow."
    )


def about_metric(evaluation: Evaluation) -> str:
    """Return what is compared, and which way is better."""
    metric_name = evaluation.comparison.metric_name
    unit = "; differences and spreads (standard deviations) are in points" if is_percentage(metric_name) else ""
    which = f"{metric_name} on the held-out test set after the last round, {better_if(metric_name)} is better"
    return f"The metric is {which}{unit}."


def about_references(evaluation: Evaluation) -> str:
    """Return how much more the references train than the methods beside them; nothing where none does."""
    said = {
        "local_only": "local_only trains every client in every round, whatever share of them takes part elsewhere.",
        "centralised": "Each step of centralised has the batches of all clients of a round together.",
    }
    names = {row.variant.method for row in evaluation.references}
    return " ".join(text for name, text in said.items() if name in names)


def about_costs(evaluation: Evaluation) -> str:
    """Return what megabytes, target and time are of."""
    name, target = evaluation.comparison.metric_name, evaluation.target
    reached = (
        f" The target is {name} {score_text(target, name)}, the first variant's in the end, reached with the first "
        "round whose score is no worse. Rounds before the last may be judged on a part of the test set "
        "(evaluation.round_examples), the same for all, so that all may reach it too early or too late. Where not "
        "every run reaches it, the mean is over those that do, which flatters it."
        if target is not None
        else ""
    )
    return (
        "Megabytes are of adapters, down and up, to all clients together; the gain is from the start to the last round."
        f"{reached} Times are of a run, all clients' training together, the median of all runs. They hold what else "
        "the machine did, and frozen layers (train.frozen_cache_megabytes) are computed by the first runs for all."
    )


def about_parts() -> str:
    """Return why nothing is tested of groups and clients."""
    return "Not tested: a part of the test set, or one client's examples, differ by chance more than the whole set."


def about_tuning(evaluation: Evaluation) -> str:
    """Return what was chosen on what, whether by the same budget, and whether more values might have been better."""
    chosen = [{key: len(values) for key, values in row.variant.chosen.items()} for row in evaluation.methods]
    if not any(chosen):
        return "Nothing was tuned: each variant ran with the settings that it was given."
    keys = sorted({key for each in chosen for key in each})
    budget = (
        "from equally many values for each variant"
        if all(each == chosen[0] for each in chosen)
        else "not from equally many values for each variant: more values are a better chance"
    )
    taken = {row.variant.name: _choice(row.variant) for row in evaluation.methods}
    baseline = evaluation.baseline.variant.name
    others = [name for name, choice in taken.items() if choice != taken[baseline]]
    apart = ""
    if others:
        apart = (
            f" Other values than {baseline} have chosen, so that their differences are of both: {'; '.join(others)}."
        )
    at_ends = [f"{row.variant.name} ({end})" for row in evaluation.methods if (end := _at_an_end(row.variant))]
    beyond = f" What lies beyond might be better still for {'; '.join(at_ends)}." if at_ends else ""
    return f"Chosen on the clients' own validation, never on the test set: {list_text(keys)}, {budget}.{apart}{beyond}"


def _choice(variant: Variant) -> dict[str, str]:
    return {key: variant.settings[key] for key in variant.chosen}


def _at_an_end(variant: Variant) -> str:
    """Return which settings were chosen at an end of the numbers that there were to choose from."""
    found = []
    for key, values in variant.chosen.items():
        try:
            numbers = sorted(map(float, values))
        except ValueError:
            continue
        taken = float(variant.settings[key])
        if len(numbers) > 1 and taken in (numbers[0], numbers[-1]):
            found.append(f"{'largest' if taken == numbers[-1] else 'smallest'} {key}")
    return ", ".join(found)


def left_out(evaluation: Evaluation) -> list[str]:
    """Return the runs that count for nothing, and the draws that a variant lacks, in a sentence each."""
    comparison = evaluation.comparison
    notes = [
        f"{run.variant}, draw {run.draw}, counts for nothing: {_why(run.fault, is_tried_again=run.has_failed)}."
        for run in evaluation.broken
    ]
    notes += [
        f"{run.variant}, draw {run.draw}, counts for nothing: its last metric is not a finite number. If it diverged, "
        "the mean over the other draws flatters it."
        for run in evaluation.without_score
    ]
    notes += [
        f"{row.variant.name} has no run that counts of draw{'' if len(row.missing) == 1 else 's'} "
        f"{ranges_text(row.missing)}: nothing is paired there."
        for row in (*evaluation.methods, *evaluation.references)
        if row.missing
    ]
    notes += [
        f"{trial.variant}, draw {trial.draw}, says nothing of {settings_text(trial.tried)}, which it tried to "
        f"choose by: {_why(trial.why, is_tried_again=trial.has_failed)}."
        for trial in comparison.idle_trials
    ]
    begun = len({run.draw for run in comparison.runs})
    if begun < comparison.num_draws:
        notes.append(f"{begun} of the {count_text(comparison.num_draws, 'draw')} asked for have a run so far.")
    return notes


def _why(fault: str, *, is_tried_again: bool) -> str:
    again = "; the same command tries it again" if is_tried_again else ""
    return f"{fault.removesuffix('.')}{again}"


def alike(evaluation: Evaluation) -> list[str]:
    """Return a sentence for each two methods that do the same to the last digit, as if one were the other."""
    found = []
    for one, other in combinations(evaluation.methods, 2):
        courses = {run.draw: run.course.metric for run in one.runs}
        pairs = [(courses[run.draw], run.course.metric) for run in other.runs if run.draw in courses]
        if pairs and all(metric == others for metric, others in pairs):
            names = f"{one.variant.name} and {other.variant.name}"
            found.append(f"{names} have the same metric in each round of each draw: do they differ in what they do?")
    return found


def about_row(row: Row, evaluation: Evaluation) -> str:
    """Return a variant's difference to the baseline as a sentence, for who does not see it."""
    metric_name = evaluation.comparison.metric_name
    if row.difference is None:
        return f"{row.variant.name} is not compared."
    interval = interval_text(row.difference.interval, metric_name)
    word = "shown" if row.difference.is_shown else "not shown"
    return f"{_lead(row.variant.name, evaluation)}, interval {interval}, {word}."


def _leads(evaluation: Evaluation) -> dict[str, float]:
    """Return by how much each variant is better than the baseline on the mean."""
    sign = -1 if is_lower_better(evaluation.comparison.metric_name) else 1
    return {name: sign * each.values.mean for name, each in evaluation.differences.items()}


def _lead(name: str, evaluation: Evaluation) -> str:
    comparison, lead = evaluation.comparison, _leads(evaluation)[name]
    num = evaluation.differences[name].values.num
    where = f"on the mean of {num} draws" if num > 1 else "in the one draw"
    if not lead:
        return f"{name} is level with {comparison.baseline} {where}"
    amount = with_unit(amount_text(abs(lead), comparison.metric_name), comparison.metric_name)
    return f"{name} is {amount} {'ahead of' if lead > 0 else 'behind'} {comparison.baseline} {where}"


def _by(difference: Difference, metric_name: str) -> str:
    """Return how large a shown difference is in whichever direction, with its interval and draws."""
    amount = amount_text(abs(difference.values.mean), metric_name)
    size = difference.interval
    if size is not None and difference.values.mean < 0:
        size = Interval(-size.high, -size.low)
    ends = interval_text(size, metric_name, is_signed=False)
    return f"{with_unit(amount, metric_name)} {ends}, {count_text(difference.values.num, 'draw')}"


def _more(num_alike: int, differences: Mapping[str, Difference]) -> str:
    """Return how many others of those compared are on the same side."""
    if num_alike == 1:
        return ""
    return f" So {'is' if num_alike == 2 else 'are'} {num_alike - 1} more of the {len(differences)} compared."


def _draws(differences: Mapping[str, Difference]) -> str:
    nums = {each.values.num for each in differences.values()}
    if max(nums) == 1:
        return "1 draw"
    return f"{max(nums)} draws" if len(nums) == 1 else f"{min(nums)} to {max(nums)} draws"


def _smallest(evaluation: Evaluation) -> str:
    """Return the range over the variants of the smallest difference that can be shown; nothing where none is known."""
    metric_name = evaluation.comparison.metric_name
    found = [each.smallest for each in evaluation.differences.values() if each.smallest is not None]
    if not found:
        return ""
    low, high = (amount_text(value, metric_name) for value in (min(found), max(found)))
    return with_unit(low if low == high else f"{low} to {high}", metric_name)
