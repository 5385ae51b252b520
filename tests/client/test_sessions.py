"""A site's lasting connection to a real server: dead lines, restarts, other versions, and two of one name."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from relay import Relay

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import DEADLINE_SECONDS, RUN, Conversation, OpenPort, enrolled, named, open_port, refusal, wait_until

from fedlora.client.site.events import Connected, Event, Finished, Idle
from fedlora.client.site.line import Line
from fedlora.client.site.participation import Participation
from fedlora.client.site.session import Session
from fedlora.common import certificates, channels
from fedlora.common.channels import Credentials, open_channel
from fedlora.common.config import RunConfig
from fedlora.common.errors import RunError
from fedlora.common.wire import PROTOCOL
from fedlora.server.identity.authority import Authority
from fedlora.v1 import session_pb2

NORTH = named("north")

GiveCredentials = Callable[[], Credentials | None]


class Onlooker:
    """Stands where a site with its worker would: it says nothing, and counts connections."""

    def __init__(self) -> None:
        self.run: RunConfig | None = None
        self.num_connections = 0
        self.is_connected = False
        self.is_closed = False

    def made(self, run: RunConfig) -> Participation:
        self.run = run
        return cast(Participation, self)

    def connected(self, _line: Line) -> None:
        self.num_connections += 1
        self.is_connected = True

    def disconnected(self) -> None:
        self.is_connected = False

    def take(self, response: session_pb2.ConnectResponse) -> None:
        raise AssertionError(response)

    def look(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


class Client:
    """A session in a thread, for as long as the context lasts."""

    def __init__(self, address: str, credentials: GiveCredentials = lambda: None) -> None:
        self.site = Onlooker()
        self.error: RunError | None = None
        self._leaves = threading.Event()
        self.events: list[Event] = []
        self._session = Session(
            address, "north", credentials=credentials, make_site=self.site.made, leaves=self._leaves.is_set,
            listener=self.events.append,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._session.run()
        except RunError as error:
            self.error = error

    def __enter__(self) -> "Client":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaves.set()
        self.wait_for_end()

    def wait_for_end(self) -> None:
        self._thread.join(DEADLINE_SECONDS)
        assert not self._thread.is_alive()
        assert self.site.run is None or self.site.is_closed

    def wait_until_connected(self, times: int = 1) -> None:
        wait_until(lambda: self.site.is_connected and self.site.num_connections == times)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients look and come back sooner than in earnest."""
    monkeypatch.setattr("fedlora.client.site.session._LOOK_SECONDS", 0.05)
    monkeypatch.setattr("fedlora.client.site.backoff._FIRST_SECONDS", 0.1)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", datetime.now(UTC))


def test_a_site_is_told_the_run(port: OpenPort) -> None:
    with Client(port.address) as client:
        client.wait_until_connected()
        assert client.site.run == RUN
        assert port.states == {"north": "starting"}
    wait_until(lambda: port.states == {"north": "away"})


def test_a_site_leaves_when_the_run_is_over_and_waits_when_the_server_goes_away(port: OpenPort) -> None:
    with Client(port.address) as client:
        client.wait_until_connected()
        port.grid.stop(is_finished=False)
        # It comes back, and as long as the server goes away it is sent away again.
        wait_until(lambda: client.site.num_connections >= 2)
        port.grid.stop(is_finished=True)
        client.wait_for_end()
    assert client.error is None
    assert [event for event in client.events if isinstance(event, Connected)][:2] == [
        Connected(RUN.federation.rounds, is_new=True),
        Connected(RUN.federation.rounds, is_new=False),
    ]
    assert client.events.count(Finished()) == 1


def test_a_site_says_that_it_waits_for_a_run_and_then_that_it_is_in_one(tmp_path: Path) -> None:
    with open_port(tmp_path, has_hall=True) as port:
        assert port.hall is not None
        port.hall.present = None
        with Client(port.address) as client:
            wait_until(lambda: client.events == [Idle()])
            port.hall.present = port.present
            client.wait_until_connected()
        assert client.events[:2] == [Idle(), Connected(RUN.federation.rounds)]


# -- lines that break


def test_case_26_a_half_open_connection_is_found_by_both_ends_within_the_keepalive_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channels._KEEPALIVE_MS + channels._KEEPALIVE_TIMEOUT_MS <= 60_000
    monkeypatch.setattr(channels, "_KEEPALIVE_MS", 1_000)
    monkeypatch.setattr(channels, "_KEEPALIVE_TIMEOUT_MS", 1_000)
    with (
        open_port(tmp_path) as port,
        Relay(("127.0.0.1", port.number)) as relay,
        Client(relay.address) as client,
    ):
        client.wait_until_connected()
        relay.swallow()
        began = time.monotonic()
        wait_until(lambda: port.states["north"] == "away" and not client.site.is_connected)
        # Without these times it would be minutes, or never.
        assert time.monotonic() - began < 15
        relay.mend()
        wait_until(lambda: client.site.is_connected and port.states["north"] == "starting")


def test_a_site_comes_back_by_itself_after_resets_and_a_cut(port: OpenPort) -> None:
    with Relay(("127.0.0.1", port.number)) as relay, Client(relay.address) as client:
        client.wait_until_connected()
        relay.reset_all()
        client.wait_until_connected(2)
        relay.cut()
        relay.reset_all()
        wait_until(lambda: port.states["north"] == "away")
        relay.mend()
        client.wait_until_connected(3)
    assert client.error is None


def test_case_23_a_site_comes_back_after_a_restart_with_a_new_certificate_of_the_same_authority(
    authority: Authority, tmp_path: Path
) -> None:
    credentials = enrolled(authority, "north")
    with ExitStack() as first_life:
        first = first_life.enter_context(open_port(tmp_path / "first", authority))
        with Client(first.address, lambda: credentials) as client:
            client.wait_until_connected()
            first_life.close()
            (tmp_path / "identity" / "server.pem").unlink()
            with open_port(tmp_path / "second", authority, address=first.address):
                client.wait_until_connected(2)
        assert client.error is None


# -- who may stay


def test_case_35_of_two_clients_with_one_identity_the_newer_stays(authority: Authority, tmp_path: Path) -> None:
    credentials = enrolled(authority, "north")
    with open_port(tmp_path, authority) as port, Client(port.address, lambda: credentials) as older:
        older.wait_until_connected()
        with Client(port.address, lambda: credentials) as newer:
            newer.wait_until_connected()
            older.wait_for_end()
            assert "another client has joined as this site" in str(older.error)
            assert newer.site.is_connected
            assert port.states == {"north": "starting"}
        assert newer.error is None


def test_case_35_the_older_connection_is_told_that_it_was_replaced(port: OpenPort) -> None:
    with (
        open_channel(port.address, None) as channel,
        Conversation(channel, NORTH) as older,
        Conversation(channel, named("south")) as other,
    ):
        older.hear("welcome")
        other.hear("welcome")
        with Conversation(channel, NORTH) as newer:
            newer.hear("welcome")
            assert older.hear_end() == (grpc.StatusCode.ABORTED, "replaced")
            port.grid.stop(is_finished=True)
            newer.hear("drain")
            other.hear("drain")


@pytest.mark.parametrize(("step", "is_newer"), [(-1, False), (1, True)])
def test_case_38_a_site_of_another_protocol_is_told_in_a_line_what_to_install_and_so_is_the_server(
    port: OpenPort, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: int, is_newer: bool
) -> None:
    ours = version("fedlora")
    monkeypatch.setattr("fedlora.client.site.session.PROTOCOL", PROTOCOL + step)
    with Client(port.address) as client:
        client.wait_for_end()
    said = str(client.error)
    assert said.startswith(
        f"the server is fedlora {ours} with protocol {PROTOCOL}, the site fedlora {ours} with protocol "
        f"{PROTOCOL + step}; at the site: pip install fedlora-{ours}-py3-none-any.whl"
    )
    assert is_newer == ("; or at the server: pip install" in said)
    assert f"refused north at 127.0.0.1: version ({said})" in caplog.text
    assert client.site.num_connections == 0


def test_a_site_of_another_release_is_named_by_it_and_one_of_the_same_protocol_is_welcome(
    port: OpenPort,
) -> None:
    with (
        open_channel(port.address, None) as channel,
        Conversation(channel, NORTH, protocol=PROTOCOL + 1, version="9.8.7\n") as newer,
    ):
        status, text = newer.hear_end()
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert f"the site fedlora 9.8.7\\n with protocol {PROTOCOL + 1}; at the site: pip install fedlora-" in text
    with open_channel(port.address, None) as channel, Conversation(channel, NORTH, version="9.8.7") as other:
        assert other.hear("welcome").welcome.version == version("fedlora")


@pytest.mark.parametrize("step", [-1, 1])
def test_a_site_leaves_a_server_that_lets_another_protocol_in(
    port: OpenPort, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What a server says of itself is looked at as well: it need not be one that compares numbers."""
    monkeypatch.setattr("fedlora.server.sites.grpc.session.PROTOCOL", PROTOCOL + step)
    with Client(port.address) as client:
        client.wait_for_end()
    assert f"with protocol {PROTOCOL + step}, the site fedlora" in str(client.error)
    assert client.site.num_connections == 0


@pytest.mark.parametrize("first", [b"", b"\x12\x00", b"\xff\xff\xff"])
def test_case_38_a_peer_that_does_not_greet_is_refused(port: OpenPort, first: bytes) -> None:
    with open_channel(port.address, None) as channel:
        connect: Any = channel.stream_stream("/fedlora.v1.SessionService/Connect")
        # gRPC itself answers to what is no message: UNKNOWN, with the parser's words.
        expected = grpc.StatusCode.UNKNOWN if first[:1] == b"\xff" else grpc.StatusCode.FAILED_PRECONDITION
        status, _ = refusal(lambda: list(connect(iter([first]), metadata=NORTH, timeout=DEADLINE_SECONDS)))
    assert status is expected
    assert port.states == {}


def test_case_34_a_site_that_is_revoked_meanwhile_ends_with_the_reason(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.sites.grpc.session._LOOK_SECONDS", 0.1)
    credentials = enrolled(authority, "north")
    with open_port(tmp_path, authority) as port, Client(port.address, lambda: credentials) as client:
        client.wait_until_connected()
        authority.revoke("north")
        client.wait_for_end()
    assert str(client.error) == "this site was revoked; ask for a new invitation"


def test_a_site_whose_certificate_ends_during_a_connection_comes_back_with_its_newest(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora.server.sites.grpc.session._LOOK_SECONDS", 0.1)
    began = datetime.now(UTC) - certificates.CERTIFICATE_LIFE + timedelta(seconds=4)
    former = enrolled(authority, "north", now=began)
    key = certificates.generate_key()
    renewed = authority.renew("north", certificates.signing_request(key, "north"), datetime.now(UTC))
    given = iter([former, Credentials(key, renewed, former.authority, former.server_name)])
    with open_port(tmp_path, authority) as port, Client(port.address, lambda: next(given)) as client:
        client.wait_until_connected()
        client.wait_until_connected(2)
    assert client.error is None


def test_a_site_connects_anew_before_its_certificate_could_end(port: OpenPort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora.client.site.session._LONGEST_CONNECTION_SECONDS", 0.3)
    with Client(port.address) as client:
        wait_until(lambda: client.site.num_connections >= 3)
    assert client.error is None
