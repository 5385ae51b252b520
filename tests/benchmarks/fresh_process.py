"""Whatever is timed runs in a process of its own, so that no figure depends on what was loaded or run before."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# The goals are for the CPU. With RAY_ADDRESS set, Ray would be measured on other machines.
_WITHOUT = ("RAY_ADDRESS",)
_SET = {
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": str(Path(__file__).parents[1] / "network"),  # the relay
    # No proxy is to stand between processes of this machine.
    "no_proxy": "127.0.0.1,localhost",
    "NO_PROXY": "127.0.0.1,localhost",
}


def run_fresh(script: str, *arguments: object) -> Any:
    """Return the JSON that `script`, a file beside this one, wrote to the path it was given as its last argument.

    It runs in a temporary directory, which is removed afterwards with all that it left there. Its output goes to
    stderr.

    Raises:
        subprocess.CalledProcessError: it failed; its traceback stands on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="fedlora-bench-") as folder:
        answer = Path(folder) / "answer.json"
        environment = {name: value for name, value in os.environ.items() if name not in _WITHOUT} | _SET
        subprocess.run(
            [sys.executable, Path(__file__).with_name(script), *map(str, arguments), answer],
            cwd=folder,
            env=environment,
            stdout=sys.stderr,
            check=True,
        )
        return json.loads(answer.read_text())
