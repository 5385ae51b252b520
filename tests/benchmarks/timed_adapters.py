"""Time whole adapters from disk: python timed_adapters.py FOLDER NUM_CLIENTS NUM_THREADS CONTENDERS ANSWER.json

CONTENDERS is a JSON list of objects: `name`, `num_repeats`, and what `aggregate_folders` takes; without a
`method`, it is the plain read. They take turns. Before that the clients are read and averaged once,
so that the files come from the disk's cache.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from progress import progress
from safetensors import safe_open

from fedlora.adapters import open_adapter
from fedlora.aggregation import METHODS, Aggregate, aggregate


def main(folder: Path, num_clients: int, num_threads: int, contenders: list[dict[str, Any]], answer: Path) -> None:
    """Write the seconds of each contender by name and repeat."""
    torch.set_num_threads(num_threads)
    folders = sorted(folder.iterdir())[:num_clients]
    plain_read(folders)
    aggregate_folders(folders, "fedit")
    seconds: dict[str, list[float]] = {contender["name"]: [] for contender in contenders}
    for repeat in range(max(contender["num_repeats"] for contender in contenders)):
        first = repeat % len(contenders)
        for contender in contenders[first:] + contenders[:first]:
            if repeat < contender["num_repeats"]:
                seconds[contender["name"]].append(_seconds(folders, contender))
    answer.write_text(json.dumps(seconds))


def plain_read(folders: list[Path]) -> float:
    """Return the sum of all numbers of all clients, by safetensors' own way of reading a file."""
    total = 0.0
    for folder in folders:
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (it is no mapping)
                total += float(file.get_tensor(key).sum())
    return total


def aggregate_folders(
    folders: list[Path], method: str, *, settings: dict[str, Any] | None = None, measure: bool = False
) -> Aggregate:
    """Return what the clients' folders become, opening them included."""
    clients = {folder.name: open_adapter(folder) for folder in folders}
    return aggregate(clients, method=METHODS[method](**(settings or {})), measure=measure)


def _seconds(folders: list[Path], contender: dict[str, Any]) -> float:
    began = time.perf_counter()
    if "method" in contender:
        aggregate_folders(
            folders, contender["method"], settings=contender.get("settings"), measure=contender.get("measure", False)
        )
    else:
        plain_read(folders)
    seconds = time.perf_counter() - began
    progress(f"{contender['name']}: {seconds:.2f} s")
    return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), Path(sys.argv[5]))
