"""`trainer`: steps per second of LocalTrainer against a bare loop of transformers, peft and torch.

`timed_trainer.py` says what is timed. The ratio is of the steps per second of a pair; a second one, of
the CPU seconds of the same pair, is less disturbed by what else the machine does.
"""

from figures import Figure, at_least
from fresh_process import run_fresh


def figures(*, quick: bool) -> list[Figure]:
    """Return both speeds, and the ratio of each pair."""
    num_pairs, num_steps = (2, 2) if quick else (12, 8)
    pairs = run_fresh("timed_trainer.py", num_pairs, num_steps)
    ours, bare = pairs["ours"], pairs["bare"]
    both = list(zip(ours, bare, strict=True))
    return [
        Figure("LocalTrainer, collating included", "steps/s", [num_steps / one["seconds"] for one in ours]),
        Figure("bare loop over prebuilt batches", "steps/s", [num_steps / one["seconds"] for one in bare]),
        Figure("ratio of the pair", "x", [theirs["seconds"] / own["seconds"] for own, theirs in both], at_least(0.97)),
        Figure(
            "ratio of the pair, by CPU time", "x", [theirs["cpu_seconds"] / own["cpu_seconds"] for own, theirs in both]
        ),
    ]
