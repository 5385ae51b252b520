"""`help`: seconds of `fedlora --help`, the whole process, with `python -c pass` beside it.

The two take turns, so that what disturbs the machine disturbs both. The first of each, which may
have to write bytecode and fill the disk's cache, does not count.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from figures import Figure, at_most
from progress import progress


def figures(*, quick: bool) -> list[Figure]:
    """Return the seconds of both commands."""
    num_repeats = 3 if quick else 20
    progress(f"fedlora --help and python -c pass in turn, {num_repeats} of each")
    help_command = [str(Path(sys.executable).with_name("fedlora")), "--help"]
    bare_command = [sys.executable, "-c", "pass"]
    pairs = [(_seconds(help_command), _seconds(bare_command)) for _ in range(num_repeats + 1)][1:]
    return [
        Figure("fedlora --help", "s", [pair[0] for pair in pairs], at_most(0.5)),
        Figure("python -c pass, for comparison", "s", [pair[1] for pair in pairs]),
    ]


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began
