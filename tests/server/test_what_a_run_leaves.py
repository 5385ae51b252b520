"""What a run's end leaves in the memory of a server that stays: nothing, whatever its sites leave unread."""

import gc
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import DEADLINE_SECONDS, Conversation, named, wait_until
from stored_runs import ServedStore, serve_while
from stub_runs import run_config
from stub_site import Reply, StubSite, honest

from fedlora.server.disk.exchange import ExchangeStore
from fedlora.server.record.events import SiteChanged
from fedlora.server.sites.grpc.grid import GrpcGrid
from fedlora.server.sites.grpc.session import SessionService
from fedlora.server.sites.grpc.transfer import TransferService
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2
from fedlora.v1.exchange_pb2_grpc import AdapterExchangeServiceStub

OF_A_RUN = (GrpcGrid, ExchangeStore, SessionService, TransferService)
CHUNK = b"x" * 64


def of_runs() -> list[object]:
    """Return what is in memory of runs."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) in OF_A_RUN]


def open_files_below(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open or mapped, also those that are removed."""
    found = [line.partition("/")[2] for line in Path("/proc/self/maps").read_text().splitlines()]
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{descriptor}")[1:])
        except FileNotFoundError:
            continue
    return [name for name in found if name.startswith(f"{folder}/"[1:])]


class Hostile:
    """Calls over a channel that lets hardly a byte come that is not read; it reads nothing, and ends no call."""

    def __init__(self, address: str) -> None:
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 5)]
        self._is_over = threading.Event()
        self._channel = grpc.insecure_channel(address, [*options, ("grpc.use_local_subchannel_pool", 1)])
        self._exchange = AdapterExchangeServiceStub(self._channel)
        self._calls: list[object] = []

    def __enter__(self) -> "Hostile":
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._channel.close()

    def connect(self) -> Conversation:
        return Conversation(self._channel, named("deaf"))

    def read(self, sha256: bytes) -> None:
        """Begin to download a file."""
        self._calls.append(self._exchange.Read(exchange_pb2.ReadRequest(sha256=sha256), metadata=named("deaf")))

    def write(self, ticket: bytes, *, site: str) -> None:
        """Begin an upload, whose second chunk never comes."""
        blob = messages_pb2.Blob(sha256=b"x" * 32, size_bytes=2 * len(CHUNK))

        def chunks() -> Iterator[exchange_pb2.WriteRequest]:
            yield exchange_pb2.WriteRequest(ticket=ticket, blob=blob, data=CHUNK)
            self._is_over.wait(DEADLINE_SECONDS)

        self._calls.append(self._exchange.Write.future(chunks(), metadata=named(site)))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="there is no /proc here")
def test_calls_that_read_nothing_keep_nothing_of_a_run_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.run_services._PART_SECONDS", 0.2)
    others, kept = WeakSet(of_runs()), WeakSet[object]()
    held: list[Conversation] = []
    seen: set[type] = set()

    def act(served: ServedStore) -> None:
        exchange = served.store.run_folder("first") / "exchange"

        def hold_up(site: StubSite, request: session_pb2.Request) -> Reply | None:
            """Train no adapter, and have calls hang while one is waited for."""
            if not request.HasField("train") or held:
                return honest(site, request)
            held.append(hostile.connect())
            hostile.read(request.adapter.whole.sha256)
            hostile.write(request.ticket, site=site.name)
            wait_until(lambda: SiteChanged("deaf", "starting") in served.events)
            # An upload goes into a part of its own; what else is open there is read.
            wait_until(lambda: {name.endswith(".part") for name in open_files_below(exchange)} == {True, False})
            kept.update(set(of_runs()) - set(others))
            seen.update(map(type, kept))
            return None

        with Hostile(served.address) as hostile:
            for name, behave in (("north", honest), ("south", hold_up)):
                StubSite(name, tmp_path / name, behave).connect(served.address)
            served.store.submit(run_config(2, run={"name": "first"}, federation={"deadline": 2.0}))
            served.wait_for("first", "finished")
            assert seen == set(OF_A_RUN)

            def is_gone() -> bool:
                gc.collect()
                return not kept and not open_files_below(exchange)

            wait_until(is_gone)
            # It reads on, and is as good as any other site.
            (deaf,) = held
            assert 'name = "first"' in deaf.hear("welcome").welcome.run_toml
            assert deaf.hear_end() == (grpc.StatusCode.ABORTED, "drained")
            served.store.submit(run_config(1, run={"name": "second"}))
            with hostile.connect() as again:
                while (heard := again.hear_any()).HasField("no_run"):
                    pass
                assert 'name = "second"' in heard.welcome.run_toml
            StubSite("north", tmp_path / "again", honest).connect(served.address)
            served.wait_for("second", "finished")

    serve_while(tmp_path / "store", act)
