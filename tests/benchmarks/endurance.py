"""`endurance`: what a server holds after many rounds more, and after 1,000 connections that came and went.

Rounds are those of 4 sites that do nothing with a tiny adapter; the connections are over mTLS, of 4 sites at a time,
each with a handshake, a Hello and a readiness, after a few that do not count. Memory is RssAnon. The disk is the
server's folder without rounds/ and rounds.jsonl, which hold something of each round for good and are their own row.
"""

from collections.abc import Iterator, Sequence

from figures import Figure
from fresh_process import run_fresh
from progress import progress

_MEASURES = {
    "memory": ("memory (RssAnon)", "MB", 1e6),
    "descriptors": ("descriptors", "", 1),
    "threads": ("threads", "", 1),
    "disk": ("disk without rounds/", "kB", 1e3),
}


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield what the servers held first, and how much more in the end."""
    first, last, num_sites, num_connects = (2, 12, 2, 100) if quick else (10, 100, 4, 1_000)
    progress(f"{last} rounds with {num_sites} sites, and {num_connects} connects")
    looks = run_fresh("measured_endurance.py", first, last, num_sites, num_connects)
    yield from _growth(f"round {first} to {last}, {num_sites} sites", f"after round {first}", looks["rounds"])
    before, after = (look["journal"] / 1e3 for look in looks["rounds"])
    yield Figure(f"round {first} to {last}, {num_sites} sites: growth of rounds/", "kB", [after - before])
    yield from _growth(f"{num_connects:,} connects and disconnects", "before", looks["connects"])


def _growth(what: str, begin: str, looks: Sequence[dict[str, int]]) -> Iterator[Figure]:
    before, after = looks
    for measure, (name, unit, divisor) in _MEASURES.items():
        yield Figure(f"{what}: {name} {begin}", unit, [before[measure] / divisor])
        yield Figure(f"{what}: growth of {name}", unit, [(after[measure] - before[measure]) / divisor])
