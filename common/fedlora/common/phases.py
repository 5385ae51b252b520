"""Named moments of a process, at which a test may stop it.

FEDLORA_PHASES holds two inherited file descriptors, "SAY,HEAR": each phase is announced as a line on the first, and
the process goes on when a line comes on the second. Without the variable nothing happens.
"""

import os
import threading

_VARIABLE = "FEDLORA_PHASES"
_lock = threading.Lock()


def announce(phase: str) -> None:
    """Say that this process is about to do `phase`, and wait for leave where somebody listens."""
    if (descriptors := os.environ.get(_VARIABLE)) is None:
        return
    say, hear = map(int, descriptors.split(","))
    with _lock:
        os.write(say, f"{phase}\n".encode())
        while os.read(hear, 1) not in (b"\n", b""):
            pass
