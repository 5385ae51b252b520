"""Rounds over a bad link: python measured_link.py WIRE_MB NUM_ROUNDS ANSWER.json

One real site that does nothing, behind a relay of 10 Mbit/s that stalls for 3 s after a fifth of the upload and resets
all connections after a half; then the same for the download of the next round, and so on in turn. The first round,
which brings the whole adapter, is over a good link. Bytes are those that passed the relay, TLS and all.
"""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from idle_federation import idle_run, idle_server, idle_sites, shape_of, write_adapter
from progress import progress
from relay import Conditions, Relay

_BITS_PER_SECOND = 10e6
_STALL_SECONDS = 3.0
_STALL_AT, _RESET_AT = 0.2, 0.5
_POLL_SECONDS = 0.005


def main(wire_megabytes: float, num_rounds: int, answer: Path) -> None:
    """Write, for each direction, the bytes over those needed, and the seconds over those of the undisturbed link."""
    adapter, folder = Path("adapter").resolve(), Path("federation").resolve()
    shape = shape_of(wire_megabytes)
    write_adapter(adapter, shape)
    config = idle_run(num_rounds=2 * num_rounds + 1, num_sites=1, method="fedit")
    with ExitStack() as stack:
        federation = stack.enter_context(idle_server(folder, config))
        relay = stack.enter_context(Relay(("127.0.0.1", federation.port)))
        stack.enter_context(idle_sites(federation, adapter, address=relay.address))
        before = federation.wait_for_round(1)
        needed = shape.size_bytes / 2
        found: dict[str, list[float]] = {"up": [], "down": [], "seconds": []}
        relay.conditions = Conditions(bits_per_second=_BITS_PER_SECOND)
        # What went out before the conditions came does not count against the first round.
        for number in range(2, 2 * num_rounds + 2):
            direction = "up" if number % 2 == 0 else "down"
            began = {"up": relay.bytes_up, "down": relay.bytes_down}
            for part, disturb in (
                (_STALL_AT, lambda: relay.stall(_STALL_SECONDS)),
                (_RESET_AT, relay.reset_all),
            ):
                limit = began[direction] + part * needed
                while (relay.bytes_up if direction == "up" else relay.bytes_down) < limit:
                    time.sleep(_POLL_SECONDS)
                disturb()
            ended = federation.wait_for_round(number)
            sent = {"up": relay.bytes_up - began["up"], "down": relay.bytes_down - began["down"]}
            found[direction].append(sent[direction] / needed)
            ideal = 2 * needed * 8 / _BITS_PER_SECOND + _STALL_SECONDS
            found["seconds"].append((ended["at"] - before["at"]) / ideal)
            progress(
                f"round {number}, disturbed {direction}: {sent['up']:,} bytes up and {sent['down']:,} down in "
                f"{ended['at'] - before['at']:.1f} s; {needed:,.0f} each way are needed, {ideal:.1f} s"
            )
            before = ended
        federation.wait_for_end()
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
