"""A server with a store in this process, over stub sites, for as long as a test acts on it."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from open_port import wait_until
from stub_runs import unchanged_identity

from fedlora.server.door import Door
from fedlora.server.record.events import Event, Listener, ignore
from fedlora.server.run_queue.serving import ShownRun, serve_store
from fedlora.server.run_queue.store import RunStore


@dataclass
class ServedStore:
    """What a test has of the server.

    Attributes:
        address: where sites connect.
        events: of all runs.
    """

    store: RunStore
    address: str
    events: list[Event] = field(default_factory=list)

    def wait_for(self, name: str, state: str) -> None:
        """Wait until a run is in a state."""
        wait_until(lambda: self.store.queue().find(name).state == state)


def serve_while(
    folder: Path,
    act: Callable[[ServedStore], None],
    *,
    check: Callable[[Path], str] = lambda _folder: "",
    listener: Listener = ignore,
) -> None:
    """Serve a store, whose address may be used in plain text, until `act`, which gets a thread of its own, is done."""
    store = RunStore.opened(folder)
    served = ServedStore(store, "")
    errors: list[BaseException] = []

    def listen(event: Event) -> None:
        served.events.append(event)
        listener(event)

    def run() -> None:
        try:
            act(served)
        except BaseException as error:
            errors.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def opened(port: int) -> None:
        served.address = f"127.0.0.1:{port}"
        threading.Thread(target=run, daemon=True).start()

    with unchanged_identity():
        serve_store(
            store,
            Door("127.0.0.1:0", is_insecure=True),
            check=check,
            shown=lambda _config, _folder, _port: ShownRun(nullcontext(enter_result=listen)),
            command="test",
            opened=opened,
        )
    if errors:
        raise errors[0]
