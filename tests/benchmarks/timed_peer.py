"""Time chorus-fl's aggregators and ours in turn: python timed_peer.py PEER_FOLDER SHAPES NUM_REPEATS ANSWER.json

PEER_FOLDER is where pip has put the package. Of it, only the module of the aggregators is loaded, with
the one it imports; the package itself would bring a web server. SHAPES is a JSON object: `rank`,
`num_clients`, `num_layers`, `size`. Both sides take the same float32 tensors from memory, on one thread,
in their own form: theirs a list of state dicts, ours adapters by name, for `aggregate` with
measure=False, whose checks for values that are not finite are part of the time.

Its FedAvg is FedIT. Its FedExLoRA is not the method of that paper, ours `fedex_lora`, but the best product of the
clients' rank to the mean of the products, from a dense singular value decomposition: ours `flex_lora`. It forms
the residual too.
"""

import importlib
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aggregation_clients import drawn_pairs, relative_difference
from progress import progress
from torch import Tensor

from fedlora.adapters import Adapter, LoraLayer
from fedlora.aggregation import METHODS, aggregate


def main(peer_folder: Path, shapes: dict[str, int], num_repeats: int, answer: Path) -> None:
    """Write the seconds by aggregator and repeat, and how far the results of equal methods are apart."""
    torch.set_num_threads(1)
    peer = load_aggregators(peer_folder)
    adapters = _adapters(**shapes)
    state_dicts = [
        {
            f"base_model.model.{path}.lora_{side}.weight": tensor
            for path, layer in adapter.layers.items()
            for side, tensor in (("A", layer.A), ("B", layer.B))
        }
        for adapter in adapters.values()
    ]
    calls: dict[str, Callable[[], Any]] = {
        **{method: _ours(adapters, method) for method in ("fedit", "lora_fair", "fedex_lora", "flex_lora")},
        "FedAvg": lambda: peer.FedAvg().aggregate(state_dicts),
        "FedExLoRA": lambda: peer.FedExLoRA().aggregate(state_dicts),
    }
    # The decomposition of a 4096 x 4096 matrix takes half a minute: with one repeat, it is not made a second time.
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for repeat in range(num_repeats + (num_repeats > 1)):
        for name, call in list(calls.items())[:: 1 if repeat % 2 else -1]:
            if name != "FedExLoRA" and num_repeats == 1:
                call()
            began = time.perf_counter()
            results[name] = call()
            seconds[name].append(time.perf_counter() - began)
            progress(f"{name}: {seconds[name][-1]:.4f} s")
    if num_repeats > 1:
        seconds = {name: repeats[1:] for name, repeats in seconds.items()}
    differences = {
        "fedit": _difference(results["FedAvg"], results["fedit"].adapter),
        "flex_lora": _difference(results["FedExLoRA"], results["flex_lora"].adapter),
    }
    answer.write_text(json.dumps({"seconds": seconds, "differences": differences}))


def load_aggregators(folder: Path) -> types.ModuleType:
    """Return chorus.server.aggregation, without what `chorus` and `chorus.server` import."""
    for name in ("chorus", "chorus.server"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    return importlib.import_module("chorus.server.aggregation")


def _adapters(*, rank: int, num_clients: int, num_layers: int, size: int) -> dict[str, Adapter]:
    generator = torch.Generator().manual_seed(0)
    layers: list[dict[str, LoraLayer]] = [{} for _ in range(num_clients)]
    for number in range(num_layers):
        pairs = drawn_pairs(num_clients, out_features=size, in_features=size, rank=rank, generator=generator)
        for client, (A, B) in zip(layers, pairs, strict=True):
            client[f"layers.{number}.q_proj"] = LoraLayer(A, B, 1.0)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    return {f"client-{number:04d}": Adapter(client, config=config) for number, client in enumerate(layers)}


def _ours(adapters: dict[str, Adapter], method: str) -> Callable[[], Any]:
    return lambda: aggregate(adapters, method=METHODS[method](), measure=False)


def _difference(theirs: dict[str, Tensor], ours: Adapter) -> float:
    """Return the largest relative difference of a layer's product."""
    keys = {path: f"base_model.model.{path}.lora_" for path in ours.layers}
    return max(
        relative_difference(theirs[f"{keys[path]}B.weight"] @ theirs[f"{keys[path]}A.weight"], layer.B @ layer.A)
        for path, layer in ours.layers.items()
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
