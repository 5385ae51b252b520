"""Kill a site again and again: python measured_recovery.py NUM_KILLS ANSWER.json

The server is one process, each site another with a worker below it; all parts are the product's own but for the app,
which does nothing. The moments of death are spread over a round.
"""

import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psutil
from event_log import Event
from idle_federation import SMALL, IdleFederation, idle_run, idle_server, write_adapter
from progress import progress
from started_processes import Started, beside

_VICTIM, _OTHER = "site-0", "site-1"
_THERE = ("ready", "at work")
_SETTLE_SECONDS = 1.0


class Sites:
    """The sites' processes, each started with the same command whenever it is started."""

    def __init__(self, federation: IdleFederation, adapter: Path, stack: ExitStack) -> None:
        self._federation = federation
        self._stack = stack
        self._commands: dict[str, list[object]] = {}
        for name in (_VICTIM, _OTHER):
            state, token = federation.folder / f"{name}.site", federation.token(name)
            address = f"127.0.0.1:{federation.port}"
            self._commands[name] = [*beside("idle_site.py"), address, name, token, state, adapter, 0]

    def start(self, name: str) -> Started:
        """Return the site's new process."""
        log = self._federation.folder / f"{name}.log"
        return self._stack.enter_context(Started(self._commands[name], log))


def main(num_kills: int, answer: Path) -> None:
    """Write the seconds from each kill to what is waited for."""
    adapter, folder = Path("adapter").resolve(), Path("federation").resolve()
    write_adapter(adapter, SMALL)
    draw = random.Random(0)
    found: dict[str, list[float]] = {"site ready": [], "site": [], "worker": []}
    with ExitStack() as stack:
        federation = stack.enter_context(idle_server(folder, idle_run(num_rounds=100_000, num_sites=2)))
        sites = Sites(federation, adapter, stack)
        victim, _ = sites.start(_VICTIM), sites.start(_OTHER)
        federation.wait_for_round(1)
        for kind in ["site"] * num_kills + ["worker"] * num_kills:
            time.sleep(_SETTLE_SECONDS + draw.random() * 0.2)
            killed, last_round = time.monotonic(), federation.events("RoundStarted")[-1]["round"]
            if kind == "site":
                victim.process.kill()
                victim.process.wait()
                victim = sites.start(_VICTIM)
                away = _seen(federation, "SiteChanged", after=killed, fits=lambda event: event["state"] == "away")
                ready = _seen(federation, "SiteChanged", after=away, fits=lambda event: event["state"] in _THERE)
                found["site ready"].append(ready - killed)
            else:
                for worker in _workers(victim.pid):
                    worker.kill()
            # An update of the round of the kill may have been on its way before.
            counted = _seen(
                federation,
                "UpdateArrived",
                after=killed,
                fits=lambda event, last=last_round: event["round"] > last and not event["reason"],  # type: ignore[misc]
            )
            found[kind].append(counted - killed)
            progress(f"{kind}: {found[kind][-1]:.2f} s")
    answer.write_text(json.dumps(found))


def _seen(federation: IdleFederation, kind: str, *, after: float, fits: Callable[[Event], bool]) -> float:
    """Return when the server first saw a fitting event, after a moment, of the site that was killed."""

    def look() -> float | None:
        events = (event for event in federation.events(kind) if event["at"] > after and fits(event))
        of_victim = (event["at"] for event in events if _VICTIM in (event.get("site"), event.get("client")))
        return next(of_victim, None)

    at: float = federation.wait_for(f"{kind} of {_VICTIM}", look)
    return at


def _workers(pid: int) -> list[psutil.Process]:
    """Return the workers of a site: what its forkserver has forked."""
    return [worker for child in psutil.Process(pid).children() for worker in child.children()]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
