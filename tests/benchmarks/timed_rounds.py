"""Time rounds of sites that do nothing: python timed_rounds.py WHAT ADAPTER NUM_SITES NUM_ROUNDS ANSWER.json

WHAT is "bare" for the Grid alone, "run" for whole rounds, "judged" for whole rounds with the held-out evaluation at
the sites; ADAPTER is "tiny" or "small".
"""

import json
import statistics
import sys
from pathlib import Path

from idle_federation import SMALL, TINY, idle_run, idle_server, idle_sites, write_adapter

_NUM_WARM_UP = 5


def main(what: str, shape: str, num_sites: int, num_rounds: int, answer: Path) -> None:
    """Write the seconds of each round, by what was timed."""
    adapter, folder = Path("adapter").resolve(), Path("federation").resolve()
    write_adapter(adapter, {"tiny": TINY, "small": SMALL}[shape])
    config = idle_run(num_rounds=num_rounds + _NUM_WARM_UP, num_sites=num_sites)
    is_bare = what == "bare"
    script, arguments = ("bare_grid_server.py", (adapter, num_rounds)) if is_bare else ("idle_server.py", ())
    with (
        idle_server(folder, config, script=script, arguments=arguments) as federation,
        idle_sites(federation, adapter, num_held_out=100 if what == "judged" else 0),
    ):
        federation.wait_for_end()
        if is_bare:
            kinds = ("evaluated", "trained")
            seconds = {kind: [event["seconds"] for event in federation.events(kind)] for kind in kinds}
        else:
            whole = federation.round_seconds()
            # The last round judges all that is held out, and others a part.
            counted = range(_NUM_WARM_UP + 1, num_rounds + _NUM_WARM_UP)
            seconds = {"round": [whole[number] for number in counted]}
            reports = {event["round"]: event["seconds"] for event in federation.events("RoundEnded")}
            for part in ("training", "aggregation", "evaluation", "storing"):
                seconds[part] = [reports[number][part] for number in counted]
    print({kind: round(1000 * statistics.median(times), 1) for kind, times in seconds.items()}, "ms", flush=True)
    answer.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
