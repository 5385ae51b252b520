"""`rounds`: what a round takes beside training, with sites that do nothing and a tiny adapter (8 kB), over mTLS.

Server and sites are processes of their own on this machine, put together as the commands do it, and each site has its
resident worker. The server is real from end to end: a whole round is from RoundEnded to RoundEnded, with plan,
exchange of the adapters, admission, aggregation (lora_fair), journal and checkpoint, while the registry checks the
newest adapter in a process beside it, over and over. "Evaluated at the sites" has a held-out set at each, which asks
every site once more. "Grid alone" has no strategy and no registry: from making the messages to the last site's answer.
Its EVALUATE moves nothing but messages; its TRAIN brings each site a new adapter and takes back an update, with all
that the site writes to its disk. "Small adapter" has the default run's size (0.6 MB).

The yardstick is Flower's SuperLink with its SuperNodes and the same strategy and clients, adapters in the messages: a
round is from RoundStarted to RoundEnded there. A ratio is of the two medians.
"""

import json
import statistics
from collections.abc import Iterator, Sequence

from figures import Figure, Goal, at_most
from fresh_process import run_fresh
from progress import progress

_NUM_SITES = 4
_PARTS = {
    "training": "asking, exchange, admission",
    "aggregation": "aggregation",
    "storing": "journal and checkpoint",
}


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the distributions of a round's time, by what belongs to it."""
    num_sites, num_rounds, num_yardstick = (1, 10, 1) if quick else (_NUM_SITES, 200, 5)
    label = f"{num_sites} {'site' if num_sites == 1 else 'sites'}"
    progress(f"{label}, {num_rounds} whole rounds")
    run = run_fresh("timed_rounds.py", "run", "tiny", num_sites, num_rounds)
    yield from _distribution(f"{label}: whole round", run["round"], at_most(50))
    for part, name in _PARTS.items():
        yield Figure(f"{label}: of it {name}", "ms", _milliseconds(run[part]))
    named = zip(*(run[part] for part in _PARTS), strict=True)
    rest = [whole - sum(parts) for whole, parts in zip(run["round"], named, strict=True)]
    yield Figure(f"{label}: of it rest: report, adapter/ and rounds.jsonl", "ms", _milliseconds(rest))
    progress(f"{label}, SuperLink, {num_yardstick} rounds")
    flower = run_fresh("timed_superlink.py", num_sites, json.dumps({"rounds": {"rounds": num_yardstick}}))["rounds"]
    yield Figure(f"{label}: whole round, SuperLink", "ms", _milliseconds(flower))
    ratio = statistics.median(flower) / statistics.median(run["round"])
    yield Figure(f"{label}: whole round, SuperLink / ours", "x", [ratio])
    progress(f"{label}, {num_rounds} round trips of the Grid alone")
    bare = run_fresh("timed_rounds.py", "bare", "tiny", num_sites, num_rounds)
    yield from _distribution(f"{label}: Grid alone, EVALUATE", bare["evaluated"])
    yield from _distribution(f"{label}: Grid alone, TRAIN", bare["trained"])
    if quick:
        return
    for what, shape, name in (("judged", "tiny", "evaluated at the sites"), ("run", "small", "small adapter")):
        progress(f"{label}, {num_rounds} whole rounds, {name}")
        found = run_fresh("timed_rounds.py", what, shape, num_sites, num_rounds)
        yield from _distribution(f"{label}: whole round, {name}", found["round"])


def _distribution(name: str, seconds: Sequence[float], goal: Goal | None = None) -> Iterator[Figure]:
    """Yield the round's time, whose median and quartiles the table shows, and the 95th percentile."""
    times = _milliseconds(seconds)
    yield Figure(name, "ms", times, goal)
    yield Figure(f"{name}, 95th percentile", "ms", [statistics.quantiles(times, n=20, method="inclusive")[-1]])


def _milliseconds(seconds: Sequence[float]) -> list[float]:
    return [1000 * one for one in seconds]
