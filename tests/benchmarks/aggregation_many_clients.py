"""`aggregation-clients`: the streaming methods over 100 and 1,000 clients from PEFT folders on disk, two threads.

MiniLM's shapes: query and value of 12 layers, 384 x 384, rank 8, float32; every client is a file of
its own, in the disk's cache. Each time is the median of three calls in one process; the memory is of a
process of its own each, by its resident set (`peak_memory.py`). Beyond the baseline, which is mostly the
imported libraries, stands what one more client costs: its entry in the table of opened adapters.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress

_PROJECTIONS = {"attention.self.query": (384, 384), "attention.self.value": (384, 384)}
_NUM_THREADS = 2
_METHODS: tuple[dict[str, Any], ...] = (
    {"name": "fedit", "method": "fedit"},
    {"name": "ffa_lora", "method": "ffa_lora"},
    {"name": "rolora", "method": "rolora"},
    {"name": "lora_fair", "method": "lora_fair"},
    {"name": "lora_fair, measured", "method": "lora_fair", "measure": True},
)


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the seconds and the memory of every method, for few and for many clients."""
    few, many = (20, 100) if quick else (100, 1000)
    num_repeats = 1 if quick else 3
    model = {"rank": 8, "num_layers": 12, "projections": _PROJECTIONS}
    with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder:
        run_fresh("write_clients.py", json.dumps(model), many, "float32", folder)
        contenders = json.dumps([{**method, "num_repeats": num_repeats} for method in _METHODS])
        for num_clients in (few, many):
            seconds = run_fresh("timed_adapters.py", folder, num_clients, _NUM_THREADS, contenders)
            for name, repeats in seconds.items():
                yield Figure(f"{num_clients:,} clients: {name}", "s", repeats)
        if not Path("/proc/self/clear_refs").exists():
            progress("memory: not measured, which needs Linux")
            return
        for method in _METHODS:
            yield from _memory(Path(folder), method, few=few, many=many)


def _memory(folder: Path, method: dict[str, Any], *, few: int, many: int) -> list[Figure]:
    name = method["name"]
    found = {}
    for num_clients in (few, many):
        progress(f"memory of {name}, {num_clients:,} clients")
        found[num_clients] = run_fresh("peak_memory.py", folder, num_clients, _NUM_THREADS, json.dumps(method))
    beyond = {num_clients: one["peak"] - one["baseline"] for num_clients, one in found.items()}
    return [
        *(Figure(f"{count:,} clients: {name}, peak", "MB", [one["peak"] / 1e6]) for count, one in found.items()),
        Figure(
            f"{name}, peak at {many:,} / at {few:,} clients",
            "x",
            [found[many]["peak"] / found[few]["peak"]],
            at_most(1.1),
        ),
        *(
            Figure(f"{count:,} clients: {name}, beyond the baseline", "MB", [one / 1e6])
            for count, one in beyond.items()
        ),
        Figure(f"{name}, for each further client", "kB", [(beyond[many] - beyond[few]) / (many - few) / 1e3]),
    ]
