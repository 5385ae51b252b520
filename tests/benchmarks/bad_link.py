"""`link`: a site behind 10 Mbit/s with a stall of 3 s and a reset of all its connections in mid-transfer, over mTLS.

The adapter takes 100 MB in bfloat16 each way. In every other round the upload is disturbed, in the others the download.
Bytes are counted where they leave the relay: what was sent again, the handshakes and all else that is no adapter stands
in them; needed is what the adapter's numbers take. The seconds are set against both ways at full rate and the stall.
"""

from collections.abc import Iterator

from figures import Figure, at_most
from fresh_process import run_fresh
from progress import progress


def figures(*, quick: bool) -> Iterator[Figure]:
    """Yield the bytes sent over the bytes needed, in each direction, and what time it took."""
    wire_megabytes, num_rounds = (4, 1) if quick else (100, 1)
    label = f"{wire_megabytes} MB at 10 Mbit/s"
    progress(f"{label}, {2 * num_rounds} rounds")
    run = run_fresh("measured_link.py", wire_megabytes, num_rounds)
    goal = None if quick else at_most(1.05)
    yield Figure(f"{label}: reset in mid-upload, bytes up sent / needed", "x", run["up"], goal)
    yield Figure(f"{label}: reset in mid-download, bytes down sent / needed", "x", run["down"], goal)
    yield Figure(f"{label}: round's seconds / undisturbed rate and stall", "x", run["seconds"])
