"""`aggregation-matrix`: the aggregation methods on one matrix in memory, float32, one thread.

`timed_one_matrix.py` says how it is timed. A method's time includes the means, which all methods need,
so that FedIT's is the time of the plain means alone. Ratios are of one repeat. "first factored form"
is what one would write first: stacked means, and the error as a difference of products. SGD is the
paper's solver: 20 steps are timed and scaled to its 1000. The diagnostics are what `aggregate` adds
with measure=True.
"""

import statistics

from figures import Figure, Goal, at_least, at_most
from fresh_process import run_fresh
from progress import progress

_GOALS = {"lora_fair": at_most(6), "lora_fair_two_sided, 2 sweeps": at_most(25), "flex_lora": at_most(120)}
_NAMES = {
    "fedit": "fedit: the plain means",
    "uncentred": "lora_fair, first factored form",
    "dense": "lora_fair, dense closed form",
    "diagnostics": "diagnostics of a result",
    "sgd": "1000 SGD steps on the cosine (from 20)",
    "dense decomposition": "flex_lora, dense decomposition",
}


def figures(*, quick: bool) -> list[Figure]:
    """Return each method's milliseconds, and its ratio to FedIT and to the dense forms."""
    size, num_repeats = (512, 3) if quick else (4096, 21)
    progress(f"one {size} x {size} matrix, 10 clients, rank 16, {num_repeats} repeats in turn")
    seconds: dict[str, list[float]] = run_fresh("timed_one_matrix.py", size, 16, 10, num_repeats)
    shape = f"{size} x {size}"

    def goal(wanted: Goal) -> Goal | None:
        return None if quick else wanted

    def over(dense: str, factored: str) -> list[float]:
        """Return the ratios of the repeats; of a form that ran once, to the median."""
        if len(seconds[dense]) == 1:
            return [seconds[dense][0] / statistics.median(seconds[factored])]
        return [slow / fast for slow, fast in zip(seconds[dense], seconds[factored], strict=True)]

    times = [
        Figure(f"{shape}: {_NAMES.get(name, name)}", "ms", [1000 * one for one in repeats])
        for name, repeats in seconds.items()
    ]
    ratios = [
        Figure(
            f"{shape}: {_NAMES.get(name, name)} / fedit",
            "x",
            over(name, "fedit"),
            goal(_GOALS[name]) if name in _GOALS else None,
        )
        for name in seconds
        if name not in ("fedit", "sgd", "dense decomposition")
    ]
    return [
        *times,
        *ratios,
        Figure(f"{shape}: dense closed form / lora_fair", "x", over("dense", "lora_fair"), goal(at_least(50))),
        Figure(f"{shape}: 1000 SGD steps / lora_fair", "x", over("sgd", "lora_fair"), goal(at_least(10_000))),
        Figure(
            f"{shape}: dense decomposition / flex_lora",
            "x",
            over("dense decomposition", "flex_lora"),
            goal(at_least(300)),
        ),
    ]
