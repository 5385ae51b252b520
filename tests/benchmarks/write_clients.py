"""Write clients' PEFT folders: python write_clients.py MODEL NUM_CLIENTS DTYPE FOLDER ANSWER.json

MODEL is a JSON object: `rank`, `num_layers`, and `projections`, each with its (out_features, in_features).
All clients are drawn anew, so that no two files are the same.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from aggregation_clients import drawn_pairs
from peft import LoraConfig
from progress import progress
from safetensors.torch import save_file
from torch import Tensor

_CLIENTS_AT_A_TIME = 10


def main(model: dict[str, Any], num_clients: int, dtype: torch.dtype, folder: Path, answer: Path) -> None:
    """Write the folders, and the bytes that the tensors of one client take."""
    progress(f"writing {num_clients} clients in {dtype}")
    generator = torch.Generator().manual_seed(0)
    rank, targets = model["rank"], [name.rpartition(".")[2] for name in model["projections"]]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    size_bytes = 0
    for first in range(0, num_clients, _CLIENTS_AT_A_TIME):
        num_drawn = min(_CLIENTS_AT_A_TIME, num_clients - first)
        clients: list[dict[str, Tensor]] = [{} for _ in range(num_drawn)]
        for layer in range(model["num_layers"]):
            for name, (out_features, in_features) in model["projections"].items():
                pairs = drawn_pairs(
                    num_drawn, out_features=out_features, in_features=in_features, rank=rank, generator=generator
                )
                prefix = f"base_model.model.model.layers.{layer}.{name}"
                for client, (A, B) in zip(clients, pairs, strict=True):
                    client[f"{prefix}.lora_A.weight"], client[f"{prefix}.lora_B.weight"] = A.to(dtype), B.to(dtype)
        for number, client in enumerate(clients, start=first):
            client_folder = folder / f"client-{number:04d}"
            config.save_pretrained(str(client_folder))
            save_file(client, client_folder / "adapter_model.safetensors", metadata={"format": "pt"})
        size_bytes = sum(tensor.nbytes for tensor in clients[0].values())
    answer.write_text(json.dumps({"client_bytes": size_bytes}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
