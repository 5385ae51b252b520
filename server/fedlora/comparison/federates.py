"""Whether runs were federations at all. Published comparisons were not: their clients never loaded what they were sent.

Two signs of it, both in numbers that every run has, to the last bit. Pure.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from fedlora.comparison.results import RunResult, Variant
from fedlora.server.record.round_report import RoundReport

# So large is the relative error of an average that has none, in float32.
_ROUNDING = 1e-5


def goes_its_own_way(reports: Sequence[RoundReport]) -> str:
    """Return what is wrong where every client begins round 2 with the score that it ended round 1 with, else nothing.

    The score is on its own validation examples: of the adapter that it has trained, and of the one that it is sent. It
    takes two clients that judged in both rounds.
    """
    if len(reports) < 3:
        return ""
    ends = {name: part.after for name, part in reports[1].clients.items() if part.after is not None}
    begins = {name: part.before for name, part in reports[2].clients.items() if part.before is not None}
    both = sorted(ends.keys() & begins.keys())
    if len(both) >= 2 and all(ends[name] == begins[name] for name in both):
        return f"its clients go on from their own updates ({', '.join(both[:3])} ...): nothing is averaged"
    return ""


def alike(variants: Sequence[Variant], runs: Sequence[RunResult]) -> Mapping[tuple[str, int], str]:
    """Return what is wrong with runs, by variant and draw, whose method should make a difference and makes none.

    That is where two methods with the same settings and draw give one adapter after round 1 although its average had an
    error to differ in, or where all clients train to the same losses in round 2 and the runs do not part later either.
    """
    by_place = {(run.variant, run.draw): run for run in runs if not run.fault}
    methods = [variant for variant in variants if variant.kind == "method"]
    faults: dict[tuple[str, int], str] = {}
    for one, other in combinations(methods, 2):
        if one.method == other.method or one.settings != other.settings:
            continue
        for draw in sorted({run.draw for run in runs}):
            pair = by_place.get((one.name, draw)), by_place.get((other.name, draw))
            if pair[0] is not None and pair[1] is not None and (found := _likeness(pair[0], pair[1])):
                faults[one.name, draw] = f"{found}, as with {other.name}"
                faults[other.name, draw] = f"{found}, as with {one.name}"
    return faults


def _likeness(one: RunResult, other: RunResult) -> str:
    if len(one.second_losses) < 2 or one.second_losses.keys() != other.second_losses.keys():
        return ""
    is_one_adapter = one.first_average == other.first_average
    # Where one factor was trained alone, as by FFA-LoRA and in RoLoRA's first round, every method's average is exact.
    is_exact = max(one.course.error_before[1], other.course.error_before[1]) < _ROUNDING
    is_one_course = one.second_losses == other.second_losses
    if is_one_adapter and is_exact:
        # With a single local step, the losses of round 2 are all of that one adapter, and only what follows tells.
        is_one_course = is_one_course and one.course.loss == other.course.loss
    if is_one_adapter and (is_one_course or not is_exact):
        return "round 1 ends in the same adapter"
    if is_one_course:
        return "all clients have the same losses in round 2, and started from different adapters"
    return ""
