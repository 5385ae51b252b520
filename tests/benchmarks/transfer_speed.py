"""`transfer`: rounds that carry 100 MB to and from each of 4 sites that do nothing, over mTLS on loopback.

The adapter has 448 arrays in float32; on the wire it is a difference in bfloat16, half of that. The parts of a round
are those of `timed_transfer.py`: a site's parts are those of the site that answered last. Throughput is the payload
of all sites over the whole round. The aggregation is the plain mean, the cheapest. The bytes on the wire are counted
by a relay in a run of its own, from round to round, with all that gRPC, TLS and the sessions add.

The yardstick is Flower's SuperLink with its SuperNodes, in plain text, with arrays of the same bytes in the messages:
one round trip to all sites and back, of which nothing is checked, stored or aggregated. The same of ours is a round
without its ending (aggregation, checkpoint, journal); the ratios are of those, one round of theirs over the median of
ours, and beside them of our whole round.
"""

import json
import statistics
from collections.abc import Iterator
from typing import Any

from figures import Figure, at_least, at_most
from fresh_process import run_fresh
from progress import progress

_NUM_SITES = 4
_PARTS = {
    "offer": "server makes the difference",
    "download": "site's download",
    "worker": "site's worker makes adapter and update",
    "upload": "site's digest, receipt and upload",
    "checks": "server's making and checking of the last update",
    "ending": "server's aggregation, checkpoint, journal",
    "control": "rest: control",
}


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield ours by part, the server's memory, the bytes on the wire, and the ratios to the SuperLink."""
    wire_megabytes, num_sites, num_rounds = (1, 1, 1) if quick else (100, _NUM_SITES, 3)
    label = f"{num_sites} x {wire_megabytes} MB"
    progress(f"{label}, {num_rounds} rounds")
    direct = run_fresh("timed_transfer.py", wire_megabytes, num_sites, num_rounds, 0)
    yield from _ours(label, direct)
    progress(f"{label} through the relay")
    relayed = run_fresh("timed_transfer.py", wire_megabytes, num_sites, 1, 1)
    over = [wire / payload for wire, payload in zip(relayed["wire"], relayed["payload"], strict=True)]
    yield Figure(f"{label}: bytes on the wire / payload, each round", "x", over, None if quick else at_most(1.02))
    size_bytes = wire_megabytes * 10**6
    num_arrays = 16 if quick else 448
    runs = {
        f"{num_arrays} arrays": {"num_arrays": num_arrays, "size_bytes": size_bytes},
        "one packed array": {"num_arrays": 1, "size_bytes": size_bytes},
    }
    flower = run_fresh("timed_superlink.py", num_sites, json.dumps(runs))
    whole = statistics.median(parts["round"] for parts in direct["parts"])
    trip = statistics.median(parts["round"] - parts["ending"] for parts in direct["parts"])
    for (name, seconds), goal in zip(flower.items(), (at_least(10), at_least(3)), strict=True):
        yield Figure(f"{label}: one round trip, SuperLink, {name}", "s", seconds)
        ratios = [one / trip for one in seconds]
        yield Figure(f"{label}: SuperLink, {name} / our round without its ending", "x", ratios, None if quick else goal)
        yield Figure(f"{label}: SuperLink, {name} / our whole round", "x", [one / whole for one in seconds])


def _ours(label: str, run: dict[str, Any]) -> Iterator[Figure]:
    rounds = run["parts"]
    yield Figure(f"{label}: first round, adapters down in float32", "s", run["round"][:1])
    yield Figure(f"{label}: whole round", "s", [parts["round"] for parts in rounds])
    for part, name in _PARTS.items():
        yield Figure(f"{label}: of it {name}", "s", [parts[part] for parts in rounds])
    payloads = run["payload"][1:]
    yield Figure(f"{label}: payload of a round", "MB", [payload / 1e6 for payload in payloads])
    for name, parts_of_it in (("round", ("round",)), ("download and upload", ("download", "upload"))):
        speeds = [
            payload / 1e6 / sum(parts[part] for part in parts_of_it)
            for payload, parts in zip(payloads, rounds, strict=True)
        ]
        yield Figure(f"{label}: throughput, payload over the {name}", "MB/s", speeds)
    yield Figure(f"{label}: server's RssAnon before the first site came", "MB", [run["idle_memory"] / 1e6])
    yield Figure(f"{label}: server's RssAnon, most of the run", "MB", [run["peak_memory"] / 1e6])
    yield Figure(f"{label}: server's VmHWM", "MB", [run["most_resident"] / 1e6])
