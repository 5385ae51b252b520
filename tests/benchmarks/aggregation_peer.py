"""`aggregation-peer`: chorus-fl 0.1.0, a package that pip installs, on the same tensors in the same run.

It is put into a temporary folder without its dependencies; where it cannot be fetched, nothing is
measured. `timed_peer.py` says what is compared with what: its FedAvg is our fedit, its FedExLoRA
computes what our flex_lora does. Two cases: one 4096 x 4096 matrix with 10 clients of rank 16, and 24
matrices of 384 x 384 with 10 clients of rank 8, MiniLM's query and value. Ratios are theirs over ours.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress

_PACKAGE = "chorus-fl==0.1.0"


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the seconds of theirs and ours, the ratios, and how far the results are apart."""
    with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder:
        if not _is_fetched(Path(folder)):
            progress(f"{_PACKAGE} is not to be had here; nothing is measured")
            return
        large, num_layers = (512, 4) if quick else (4096, 24)
        yield from _compared(folder, num_layers=1, size=large, rank=16, num_repeats=1)
        yield from _compared(folder, num_layers=num_layers, size=384, rank=8, num_repeats=3)


def _is_fetched(folder: Path) -> bool:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-deps"]
    return subprocess.run([*command, "--target", folder, _PACKAGE], stdout=sys.stderr, check=False).returncode == 0


def _compared(folder: str, *, num_layers: int, size: int, rank: int, num_repeats: int) -> list[Figure]:
    shapes = {"rank": rank, "num_clients": 10, "num_layers": num_layers, "size": size}
    answer = run_fresh("timed_peer.py", folder, json.dumps(shapes), num_repeats)
    seconds, differences = answer["seconds"], answer["differences"]
    label = f"{num_layers} of {size} x {size}"

    def over(theirs: str, ours: str) -> list[float]:
        return [slow / fast for slow, fast in zip(seconds[theirs], seconds[ours], strict=True)]

    return [
        *(
            Figure(f"{label}: {'chorus ' if name[0].isupper() else ''}{name}", "ms", [1000 * one for one in repeats])
            for name, repeats in seconds.items()
        ),
        Figure(f"{label}: chorus FedAvg / fedit", "x", over("FedAvg", "fedit")),
        Figure(f"{label}: chorus FedAvg / lora_fair", "x", over("FedAvg", "lora_fair")),
        Figure(f"{label}: chorus FedExLoRA / flex_lora", "x", over("FedExLoRA", "flex_lora")),
        Figure(f"{label}: chorus FedExLoRA / fedex_lora", "x", over("FedExLoRA", "fedex_lora")),
        Figure(f"{label}: FedAvg and fedit apart by", "relative", [differences["fedit"]], at_most(1e-5)),
        Figure(f"{label}: FedExLoRA and flex_lora apart by", "relative", [differences["flex_lora"]], at_most(1e-4)),
    ]
