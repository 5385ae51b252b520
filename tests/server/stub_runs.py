"""The runs that stub sites take part in: the rounds alone over an open port, or all of a server in this process."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from flwr.supercore.task_identity import TaskIdentity

sys.path.append(str(Path(__file__).parent))

from open_port import DEADLINE_SECONDS, OpenPort, wait_until
from peers import LORA
from stub_site import StubSite

from fedlora.aggregation import FedIT
from fedlora.common.config import RunConfig
from fedlora.methods import Method
from fedlora.server.deployment import serve
from fedlora.server.disk.store import RunFolder
from fedlora.server.door import Door
from fedlora.server.record.events import Event, Listener, Noted, Waiting
from fedlora.server.record.round_report import RoundReport
from fedlora.server.rounds.federated_run import FederatedRun
from fedlora.server.sites import LastingSites
from fedlora.server.sites.grpc.request_traces import RequestTraces
from fedlora.server.whole_run import Run, whole_run


def run_config(num_sites: int, **sections: dict[str, object]) -> RunConfig:
    """Return a run of one round over sites that hold no data; its keywords are sections to change."""
    base: dict[str, dict[str, object]] = {
        "run": {"name": "digits"},
        "data": {"labels": ["a", "b"]},
        "lora": LORA,
        "aggregation": {"method": "fedit"},
        "exchange": {"precision": "float32"},
        "federation": {"rounds": 1, "sites": num_sites, "quorum": 0.5},
    }
    names = {*base, *sections}
    return RunConfig.model_validate({name: {**base.get(name, {}), **sections.get(name, {})} for name in names})


class PortRun:
    """The rounds of a run in a thread, over the sites that connect to a port."""

    def __init__(self, folder: Path, port: OpenPort, config: RunConfig, *, method: Method | None = None) -> None:
        self.events: list[Event] = []
        self.config = config
        self.folder = RunFolder(folder)
        self._error: BaseException | None = None
        run = FederatedRun(
            config, method or FedIT(), self.folder, num_sites=config.federation.sites, command="test",
            listener=self.events.append,
        )  # fmt: skip

        def start() -> None:
            try:
                run.start(LastingSites(port.grid))
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=start, daemon=True)
        self._thread.start()

    def reports(self) -> list[RoundReport]:
        """Return the rounds once the run is over."""
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive(), self.notes() + self.waits_for()
        if self._error is not None:
            raise self._error
        checkpoint = self.folder.latest()
        assert checkpoint is not None
        return list(checkpoint.reports)

    def notes(self) -> str:
        return "\n".join(line for event in self.events if isinstance(event, Noted) for line in event.lines)

    def waits_for(self) -> str:
        return "\n".join(event.what for event in self.events if isinstance(event, Waiting))

    def wait_for(self, words: str) -> None:
        wait_until(lambda: words in self.waits_for())

    def first(self) -> bytes:
        """Return the file of the first adapter."""
        return (self.folder.path / "rounds" / "0000" / "adapter.safetensors").read_bytes()


@contextmanager
def unchanged_identity() -> Iterator[None]:
    """Give back what a Grid sets in Flower."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def served(
    config: RunConfig,
    folder: Path,
    sites: Sequence[StubSite],
    *,
    listener: Listener = lambda _event: None,
    check: Callable[[Path], str] = lambda _folder: "",
    opened: Callable[[str], None] = lambda _address: None,
    traces: RequestTraces | None = None,
) -> list[Event]:
    """Serve a run to its end over these sites, with all that a server has but the terminal; return what has happened.

    A site whose behaviour raises ends the server, which would wait for it for ever.

    Args:
        opened: called with the address before the sites connect, in the thread of the server.
        traces: hears of each request.
    """
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        listener(event)

    connected: list[StubSite] = []

    def begin(port: int) -> None:
        opened(f"127.0.0.1:{port}")
        connected.extend(site.connect(f"127.0.0.1:{port}", broken=_interrupt) for site in sites)

    run = Run(config, folder, config.federation.sites, "test")
    door = Door("127.0.0.1:0", is_insecure=True)
    with unchanged_identity():
        whole_run(
            run,
            lambda rounds: serve(rounds, door, check=check, opened=begin, traces=traces),
            shown=nullcontext(enter_result=listen),
        )
    for site in connected:
        site.join()
    return events
