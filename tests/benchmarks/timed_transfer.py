"""Time rounds that carry adapters: python timed_transfer.py WIRE_MB NUM_SITES NUM_ROUNDS THROUGH_RELAY ANSWER.json

Sites that do nothing exchange adapters of 448 arrays, WIRE_MB in bfloat16. THROUGH_RELAY is 0 or 1: with it a relay
counts the bytes, and takes time, so that only the bytes count. The aggregation is the plain mean.

In the first round the sites fetch the whole adapter in float32, twice as much; the rounds that count come after it.
A round is divided at the phases that the processes announce. "download", "worker" and "upload" are those of the site
that answered last: fetching, the worker's making of the adapter and of the update, and sending, with the digest and
the receipt before it. "offer" is what the server does before its first request goes out, "checks" from the last
answer on, and "ending" is aggregation, checkpoint and journal. "control" is the rest.
"""

import json
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

from idle_federation import IdleFederation, idle_run, idle_server, idle_sites, shape_of, write_adapter
from process_watch import MemoryWatch, memory_bytes
from progress import progress
from relay import Relay

Phases = list[tuple[str, float]]


def main(wire_megabytes: float, num_sites: int, num_rounds: int, through_relay: bool, answer: Path) -> None:
    """Write the seconds of each round by part, the bytes, and the server's memory."""
    adapter, folder = Path("adapter").resolve(), Path("federation").resolve()
    shape = shape_of(wire_megabytes)
    write_adapter(adapter, shape)
    config = idle_run(num_rounds=num_rounds + 1, num_sites=num_sites, method="fedit")
    with ExitStack() as stack:
        federation = stack.enter_context(idle_server(folder, config, notes_phases=not through_relay))
        watch = stack.enter_context(MemoryWatch(federation.server.pid).watching())
        relay = stack.enter_context(Relay(("127.0.0.1", federation.port))) if through_relay else None
        address = None if relay is None else relay.address
        stack.enter_context(idle_sites(federation, adapter, address=address, notes_phases=not through_relay))
        counted = []
        for number in range(num_rounds + 2):
            ended = federation.wait_for_round(number)
            counted.append(0 if relay is None else relay.bytes_up + relay.bytes_down)
            if number <= num_rounds:  # After the last one it may be gone.
                most_resident = memory_bytes(federation.server.pid, "VmHWM")
            progress(f"round {number} ended at {ended['at']:.1f}, {ended['bytes_down'] + ended['bytes_up']:,} bytes")
        federation.wait_for_end()
        ends = [event["at"] for event in federation.events("RoundEnded")]
        reports = federation.events("RoundEnded")
        started = next(event["at"] for event in federation.events("SiteChanged"))
        written: dict[str, Any] = {
            "arrays": 2 * shape.num_pairs,
            "adapter_bytes": shape.size_bytes,
            "round": [later - earlier for earlier, later in pairwise(ends)],
            "payload": [report["bytes_down"] + report["bytes_up"] for report in reports[1:]],
            "wire": [later - earlier for earlier, later in pairwise(counted)],
            "idle_memory": watch.between(0, started)[-1],
            "peak_memory": max(watch.between(started, time.monotonic())),
            "most_resident": most_resident,
        }
        if relay is None:
            written["parts"] = [_parts(federation, number) for number in range(2, num_rounds + 2)]
            for parts in written["parts"]:
                progress(", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items()))
    answer.write_text(json.dumps(written))


def _parts(federation: IdleFederation, number: int) -> dict[str, float]:
    """Return a round's seconds by part; they sum up to the whole round."""
    ends = {event["round"]: event["at"] for event in federation.events("RoundEnded")}
    began, ended = ends[number - 1], ends[number]
    sites = [_within(site.phases, began, ended) for site in federation.sites.values()]
    last = max(sites, key=lambda phases: phases["before the acknowledgement"])
    server = [(phase, at) for phase, at in federation.server.phases if began < at < ended]
    sent = next(at for phase, at in server if phase == "send")
    aggregating = next(at for phase, at in server if phase == "aggregate")
    parts = {
        "offer": sent - began,
        "download": last["train"] - last["download"],
        "worker": last["write"] - last["train"],
        "upload": last["before the acknowledgement"] - last["write"],
        "checks": aggregating - last["before the acknowledgement"],
        "ending": ended - aggregating,
    }
    return {**parts, "control": ended - began - sum(parts.values()), "round": ended - began}


def _within(phases: Phases, began: float, ended: float) -> dict[str, float]:
    """Return a site's phases in a round with their times."""
    found = {phase: at for phase, at in phases if began < at < ended}
    if missing := {"download", "train", "write", "before the acknowledgement"} - found.keys():
        raise RuntimeError(f"a site has not announced {missing} between {began} and {ended}, but {phases}")
    return found


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1", Path(sys.argv[5]))
