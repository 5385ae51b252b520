"""`aggregation-adapter`: whole adapters in Llama-3.1-8B's shapes from PEFT folders on disk, two threads.

All seven projections of 32 layers, rank 16, 10 clients, in float32 and in bf16. A time is that of
`aggregate` over adapters from `open_adapter`, opening included, with measure=False where not said
otherwise; the files are in the disk's cache. The plain read loads each tensor of each client with
safetensors' `safe_open` and sums it. A ratio is of one repeat, in which all methods took turns.
Memory is in a process of its own each: `peak_memory.py` says how. What a method holds beyond the
result is set against the bytes of two of the model's layers of one client, as they are in its file.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress

_LLAMA = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
_NUM_CLIENTS = 10
_NUM_THREADS = 2
_READ = "plain read"
# What the goal is about is repeated most often, and what takes many seconds is not repeated.
_METHODS: tuple[dict[str, Any], ...] = (
    {"name": "fedit", "num_repeats": 5, "method": "fedit"},
    {"name": "ffa_lora", "num_repeats": 2, "method": "ffa_lora"},
    {"name": "rolora", "num_repeats": 2, "method": "rolora"},
    {"name": "lora_fair", "num_repeats": 5, "method": "lora_fair"},
    {"name": "lora_fair, corrects A", "num_repeats": 2, "method": "lora_fair", "settings": {"corrects": "A"}},
    {"name": "lora_fair, measured", "num_repeats": 1, "method": "lora_fair", "measure": True},
    {"name": "lora_fair_two_sided", "num_repeats": 1, "method": "lora_fair_two_sided"},
    {"name": "lora_fair_cosine", "num_repeats": 1, "method": "lora_fair_cosine"},
    {"name": "fedex_lora", "num_repeats": 1, "method": "fedex_lora"},
    {"name": "flora", "num_repeats": 1, "method": "flora"},
    {"name": "flex_lora", "num_repeats": 1, "method": "flex_lora"},
)


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the seconds, the ratios and the memory of every method, for each type of number."""
    shrink, num_layers = (8, 2) if quick else (1, 32)
    projections = {name: [size // shrink for size in shape] for name, shape in _LLAMA.items()}
    model = json.dumps({"rank": 16, "num_layers": num_layers, "projections": projections})
    for dtype in ("float32", "bfloat16"):
        label = f"{dtype}, 1/{shrink} of the size, {num_layers} layers" if quick else dtype
        with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder:
            written = run_fresh("write_clients.py", model, _NUM_CLIENTS, dtype, folder)
            yield from _times(label, folder, quick=quick)
            yield from _memory(label, folder, layer_bytes=written["client_bytes"] / num_layers, quick=quick)


def _times(label: str, folder: str, *, quick: bool) -> list[Figure]:
    contenders = [{"name": _READ, "num_repeats": 5}, *_METHODS]
    seconds = run_fresh("timed_adapters.py", folder, _NUM_CLIENTS, _NUM_THREADS, json.dumps(contenders))

    def over(name: str, other: str) -> list[float]:
        return [own / theirs for own, theirs in zip(seconds[name], seconds[other], strict=False)]

    goals = {} if quick else {"lora_fair": at_most(2.5)}
    methods = [name for name in seconds if name != _READ]
    return [
        *(Figure(f"{label}: {name}", "s", repeats) for name, repeats in seconds.items()),
        *(Figure(f"{label}: {name} / read", "x", over(name, _READ), goals.get(name)) for name in methods),
        *(Figure(f"{label}: {name} / fedit", "x", over(name, "fedit")) for name in methods if name != "fedit"),
    ]


def _memory(label: str, folder: str, *, layer_bytes: float, quick: bool) -> Iterator[Figure]:
    if not Path("/proc/self/clear_refs").exists():
        progress("memory: not measured, which needs Linux")
        return
    yield Figure(f"{label}: two layers of one client", "MB", [2 * layer_bytes / 1e6])
    for method in _METHODS:
        has_goal = method["name"] == "lora_fair"
        progress(f"memory of {method['name']}")
        # What the allocator keeps differs from process to process.
        runs = [
            run_fresh("peak_memory.py", folder, _NUM_CLIENTS, _NUM_THREADS, json.dumps(method))
            for _ in range(3 if has_goal else 1)
        ]
        beyond = [run["peak"] - run["baseline"] - run["result"] for run in runs]
        name = f"{label}: {method['name']}"
        yield Figure(f"{name}, result", "MB", [runs[0]["result"] / 1e6])
        yield Figure(f"{name}, peak beyond it", "MB", [one / 1e6 for one in beyond])
        if has_goal:
            goal = None if quick else at_most(1)
            yield Figure(f"{name}, peak beyond it / two layers", "x", [one / (2 * layer_bytes) for one in beyond], goal)
