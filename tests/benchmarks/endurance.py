"""`endurance`: what a server holds over 100 rounds, and after 1,000 connections that came and went.

Rounds are those of 4 sites that do nothing with a tiny adapter; the connections are over mTLS, of 4 sites at a time,
each with a handshake, a Hello and a readiness, after a few that do not count. Memory is RssAnon. The disk is the
server's folder without rounds/, which is its own row, and rounds.jsonl, audit.jsonl and report.html: all of them hold
something of each round for good.
The first round's row has all that is made once; growth is from the quarter of the run to its end.
"""

from collections.abc import Iterator, Sequence

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress

_MEASURES = {
    "memory": ("memory (RssAnon)", "MB", 1e6),
    "descriptors": ("descriptors", "", 1),
    "threads": ("threads", "", 1),
    "disk": ("disk without what is kept of rounds", "kB", 1e3),
}
_MOST_GROWTH = {"memory": 5.0, "descriptors": 2.0, "threads": 2.0, "disk": 50.0}


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield what the servers held at each look, and how much more in the end."""
    rounds, num_sites, num_connects = ((0, 4, 8, 12), 2, 100) if quick else ((0, 25, 50, 75, 100), 4, 1_000)
    progress(f"{rounds[-1]} rounds with {num_sites} sites, and {num_connects} connects")
    looks = run_fresh("measured_endurance.py", ",".join(map(str, rounds)), num_sites, num_connects)
    for measure, (name, unit, divisor) in _MEASURES.items():
        for number, held in zip(rounds, looks["rounds"], strict=True):
            yield Figure(f"{num_sites} sites: {name} after round {number}", unit, [held[measure] / divisor])
    settled = looks["rounds"][1:]
    yield from _growth(f"round {rounds[1]} to {rounds[-1]}, {num_sites} sites", (settled[0], settled[-1]))
    before, after = (look["journal"] / 1e3 for look in (settled[0], settled[-1]))
    yield Figure(f"round {rounds[1]} to {rounds[-1]}, {num_sites} sites: growth of rounds/", "kB", [after - before])
    for measure, (name, unit, divisor) in _MEASURES.items():
        yield Figure(f"before {num_connects:,} connects: {name}", unit, [looks["connects"][0][measure] / divisor])
    yield from _growth(f"{num_connects:,} connects and disconnects", looks["connects"])


def _growth(what: str, looks: Sequence[dict[str, int]]) -> Iterator[Figure]:
    before, after = looks
    for measure, (name, unit, divisor) in _MEASURES.items():
        grown = (after[measure] - before[measure]) / divisor
        yield Figure(f"{what}: growth of {name}", unit, [grown], at_most(_MOST_GROWTH[measure]))
