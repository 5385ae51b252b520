"""Time Flower's SuperLink: python timed_superlink.py NUM_SITES RUNS ANSWER.json

RUNS is a JSON object: by name the run config of `idle_superlink_server`. Rounds of a strategy take the tiny adapter.
"""

import json
import sys
from pathlib import Path

from idle_federation import TINY, write_adapter
from progress import progress
from superlink import seconds_of_rounds, superlink


def main(num_sites: int, runs: dict[str, dict[str, int]], answer: Path) -> None:
    """Write the seconds of each run's rounds."""
    adapter = Path("adapter").resolve()
    write_adapter(adapter, TINY)
    seconds = {}
    with superlink(Path("superlink").resolve(), adapter, num_sites=num_sites) as flower:
        for name, config in runs.items():
            seconds[name] = seconds_of_rounds(flower.run(name, **config))
            progress(f"SuperLink, {name}: {', '.join(f'{one:.2f} s' for one in seconds[name])} a round")
    answer.write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]))
