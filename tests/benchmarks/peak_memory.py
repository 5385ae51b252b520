"""Peak memory of one aggregation: python peak_memory.py FOLDER NUM_CLIENTS NUM_THREADS CONTENDER ANSWER.json

CONTENDER is a JSON object as `timed_adapters.py` takes it. The memory is the process's resident set, as
Linux counts it; its high-water mark is reset right before the call. By then a tiny adapter has been
aggregated in the same way, so that imports, code and the libraries' own buffers stand in the baseline,
and freed memory has been given back. Beyond the baseline come the opened adapters, the result, what
the method works with, and what the allocator keeps of it.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
from timed_adapters import aggregate_folders

from fedlora.adapters import Adapter, LoraLayer, save_adapter


def main(folder: Path, num_clients: int, num_threads: int, contender: dict[str, Any], answer: Path) -> None:
    """Write the bytes of the baseline, of the peak, and of the result."""
    torch.set_num_threads(num_threads)
    settings, measure = contender.get("settings"), contender.get("measure", False)
    aggregate_folders(_tiny_clients(), contender["method"], settings=settings, measure=measure)
    folders = sorted(folder.iterdir())[:num_clients]
    ctypes.CDLL(None).malloc_trim(0)
    baseline = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Sets the high-water mark to what is resident.
    result = aggregate_folders(folders, contender["method"], settings=settings, measure=measure)
    peak = _resident_bytes("VmHWM")
    written = {"baseline": baseline, "peak": peak, "result": result.adapter.size_bytes()}
    answer.write_text(json.dumps(written))


def _tiny_clients() -> list[Path]:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    folders = []
    for number in range(3):
        layers = {"layers.0.q_proj": LoraLayer(torch.randn(4, 64), torch.randn(64, 4), 1.0)}
        folders.append(Path(f"tiny-{number}"))
        save_adapter(Adapter(layers, config=config), folders[-1])
    return folders


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]), Path(sys.argv[5]))
