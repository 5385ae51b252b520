"""`plan`: the memory that `fedlora plan` predicts for a client's training on the CPU, against what the profiler finds.

Of the two presets, and of a small Llama at two lengths of text, with and without gradient checkpointing. Each run has
a process of its own (`measured_plan.py`). What the process's resident memory grew by in the training, which includes
the loaded weights, stands beside it and is not promised: allocators keep what was freed.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress

from fedlora.common.config import RunConfig
from fedlora.simulation import preset

_LENGTHS = (128, 512)


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield both peaks, how far they are apart, and the resident memory of each run."""
    with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder:
        run_fresh("write_llama.py", folder)
        for name, config in _runs(Path(folder), quick=quick):
            progress(name)
            found = run_fresh("measured_plan.py", config.model_dump_json(), 2)
            yield Figure(f"{name}: predicted", "MB", [found["predicted"] / 1e6])
            yield Figure(f"{name}: measured", "MB", [found["measured"] / 1e6])
            error = 100 * abs(found["predicted"] / found["measured"] - 1)
            yield Figure(f"{name}: off by", "%", [error], at_most(15))
            yield Figure(f"{name}: resident memory, grown by", "MB", [found["resident"] / 1e6])


def _runs(folder: Path, *, quick: bool) -> Iterator[tuple[str, RunConfig]]:
    yield "digits", preset("digits", "train.device=cpu")
    if not quick:
        yield "digits, bfloat16", preset("digits", "train.device=cpu", "train.precision=bfloat16")
        yield "emoji", preset("emoji", "train.device=cpu")
    for max_length in _LENGTHS[:1] if quick else _LENGTHS:
        for is_on in (False, True):
            yield (
                f"Llama, {max_length} tokens{', checkpointed' if is_on else ''}",
                RunConfig.model_validate(
                    {
                        "model": {"name": str(folder)},
                        "task": {"kind": "causal_lm", "max_length": max_length},
                        "partition": {"by": "iid"},
                        "train": {"device": "cpu", "batch_size": 4, "gradient_checkpointing": is_on},
                    }
                ),
            )
