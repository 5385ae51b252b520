"""`language`: tokens per second of LocalTrainer on language models, and what each option buys.

`timed_language.py` says what is timed. On a CPU with a small Llama; on a GPU, where there is one, with models of the
shapes of Llama-3.2-1B and Llama-3.1-8B and random weights.
"""

import torch
from figures import Figure, at_least
from fresh_process import run_fresh


def figures(*, quick: bool) -> list[Figure]:
    """Return speeds, their ratio by pair, and the table of what each option buys."""
    shapes = ("llama-1b", "llama-8b") if torch.cuda.is_available() else ("small",)
    found = []
    for shape in shapes:
        num_pairs, num_steps = (2, 2) if quick else (10, 4)
        answer = run_fresh("timed_language.py", shape, num_pairs, num_steps)
        for text, pairs in answer["pairs"].items():
            ours, bare = pairs["ours"], pairs["bare"]
            tokens = pairs["tokens"]
            both = list(zip(ours, bare, strict=True))
            name = f"{shape}, {text}"
            found += [
                Figure(f"{name}: LocalTrainer", "tokens/s", [tokens / one["seconds"] for one in ours]),
                Figure(f"{name}: bare loop", "tokens/s", [tokens / one["seconds"] for one in bare]),
                Figure(
                    f"{name}: ratio of the pair",
                    "x",
                    [theirs["seconds"] / own["seconds"] for own, theirs in both],
                    at_least(0.97),
                ),
            ]
        plain = answer["options"]["plain"]
        for name, option in answer["options"].items():
            found += [
                Figure(f"{shape}, {name}: tokens", "tokens/s", option["tokens_per_second"]),
                Figure(
                    f"{shape}, {name}: speed beside plain",
                    "x",
                    [
                        own / theirs
                        for own, theirs in zip(option["tokens_per_second"], plain["tokens_per_second"], strict=True)
                    ],
                ),
            ]
            if option["peak_bytes"]:
                found.append(Figure(f"{shape}, {name}: peak memory of a step", "MB", [option["peak_bytes"] / 1e6]))
    return found
