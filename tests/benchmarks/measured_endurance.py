"""What a server keeps over time: python measured_endurance.py ROUND,ROUND... NUM_SITES NUM_CONNECTS ANSWER.json

Two servers, each a process of its own: one that does rounds with sites that do nothing, looked at after each ROUND that
is named; and one that waits for its sites, to which a few sites connect NUM_CONNECTS times, say that they
are ready, and go without a word.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from idle_federation import TINY, IdleFederation, idle_run, idle_server, idle_sites, write_adapter
from light_site import LightSite, enrolled
from process_watch import disk_bytes, memory_bytes, num_descriptors, num_threads
from progress import progress

from fedlora.common.channels import Credentials

_NUM_VISITORS = 4
# After the first connections the libraries' own buffers are there.
_NUM_WARM_UP = 40
_REST_SECONDS = 2.0
# What a run keeps of each round for good, small as it is, grows with it.
_JOURNAL = ("rounds", "rounds.jsonl", "audit.jsonl", "report.html")

Held = dict[str, int]


def main(looks_at: Sequence[int], num_sites: int, num_connects: int, answer: Path) -> None:
    """Write what the servers held at each look."""
    adapter = Path("adapter").resolve()
    write_adapter(adapter, TINY)
    looks = {"rounds": _rounds(adapter, looks_at, num_sites), "connects": _connects(num_connects)}
    answer.write_text(json.dumps(looks))


def _rounds(adapter: Path, looks: Sequence[int], num_sites: int) -> list[Held]:
    # One round more: after the last one the server ends.
    config = idle_run(num_rounds=looks[-1] + 1, num_sites=num_sites)
    found = []
    with idle_server(Path("rounds").resolve(), config) as federation, idle_sites(federation, adapter):
        for number in looks:
            federation.wait_for_round(number)
            found.append(_held(federation))
            progress(f"after round {number}: {found[-1]}")
    return found


def _connects(num_connects: int) -> list[Held]:
    # The run waits for one site more than there are.
    config = idle_run(num_rounds=1, num_sites=_NUM_VISITORS + 1)
    found = []
    with idle_server(Path("connects").resolve(), config) as federation:
        credentials = {f"site-{number}": enrolled(federation, f"site-{number}") for number in range(_NUM_VISITORS)}
        for num_visits in (_NUM_WARM_UP, num_connects):
            visitors = [
                threading.Thread(target=_visit, args=(federation, name, one, num_visits // _NUM_VISITORS))
                for name, one in credentials.items()
            ]
            for visitor in visitors:
                visitor.start()
            for visitor in visitors:
                visitor.join()
            time.sleep(_REST_SECONDS)
            found.append(_held(federation))
            progress(f"after {num_visits} connects: {found[-1]}")
        states = {event["site"]: event["state"] for event in federation.events("SiteChanged")}
        if set(states.values()) != {"away"} or len(states) != _NUM_VISITORS:
            raise RuntimeError(f"not all sites came and went: {states}")
    return found


def _visit(federation: IdleFederation, name: str, credentials: Credentials, num_visits: int) -> None:
    for _ in range(num_visits):
        site = LightSite(f"127.0.0.1:{federation.port}", name, credentials)
        site.say_ready()
        site.close()


def _held(federation: IdleFederation) -> Held:
    pid = federation.server.pid
    return {
        "memory": memory_bytes(pid),
        "descriptors": num_descriptors(pid),
        "threads": num_threads(pid),
        "disk": disk_bytes(federation.out, without=_JOURNAL),
        "journal": disk_bytes(federation.out / "rounds"),
    }


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1].split(",")], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
