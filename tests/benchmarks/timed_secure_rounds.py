"""Time rounds over secure sums, or open ones: python timed_secure_rounds.py MB NUM_SITES NUM_ROUNDS SECURE ANSWER.json

Sites that do nothing, over mTLS on this machine, with an adapter of 448 arrays that takes MB in float32, averaged by
lora_fair. SECURE is 0 or 1. The open ones send differences in bfloat16, as they do by default.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path

from idle_federation import idle_run, idle_server, idle_sites, shape_of, write_adapter


def main(megabytes: float, num_sites: int, num_rounds: int, is_secure: bool, answer: Path) -> None:
    """Write the seconds and the bytes up and down of each round but the first, in which all of the adapter travels."""
    adapter, folder = Path("adapter").resolve(), Path("federation").resolve()
    write_adapter(adapter, shape_of(megabytes / 2))
    config = idle_run(num_rounds=num_rounds + 1, num_sites=num_sites, has_secure_sums=is_secure)
    with idle_server(folder, config) as federation, idle_sites(federation, adapter):
        federation.wait_for_end()
        ended = federation.events("RoundEnded")
    answer.write_text(
        json.dumps(
            {
                "round": [later["at"] - earlier["at"] for earlier, later in pairwise(ended)][1:],
                "up": [event["bytes_up"] for event in ended[2:]],
                "down": [event["bytes_down"] for event in ended[2:]],
            }
        )
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1", Path(sys.argv[5]))
