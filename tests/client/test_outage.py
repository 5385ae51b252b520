"""What a site says of a server that is away, from another time, or another one: at once, and then ever more rarely."""

import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import RUN, enrolled, open_port, wait_until
from test_sessions import Client, quick

from fedlora.client.site.outage import Outage
from fedlora.common import certificates
from fedlora.common.channels import Credentials
from fedlora.common.run_file import to_toml
from fedlora.common.wire import PROTOCOL
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.port import ExternalPair
from fedlora.v1 import session_pb2
from fedlora.v1.session_pb2_grpc import SessionServiceServicer, add_SessionServiceServicer_to_server

__all__ = ["quick"]

HOUR = timedelta(hours=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", datetime.now(UTC))


def test_an_outage_is_said_at_once_and_then_after_a_minute_ten_minutes_and_each_hour() -> None:
    outage = Outage()
    said = {seconds: line for seconds in range(0, 20_000, 5) if (line := outage.failed(now=seconds)) is not None}
    assert said == {
        0: "",
        60: " (13 attempts in 1 min)",
        660: " (133 attempts in 11 min)",
        4_260: " (853 attempts in 71 min)",
        7_860: " (1573 attempts in 2 h)",
        11_460: " (2293 attempts in 3 h)",
        15_060: " (3013 attempts in 4 h)",
        18_660: " (3733 attempts in 5 h)",
    }
    outage.over()
    assert [outage.failed(now=20_000), outage.failed(now=20_005)] == ["", None]


def test_a_server_that_is_away_is_one_line_however_often_it_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    attempts: list[None] = []

    def credentials() -> None:
        attempts.append(None)

    with caplog.at_level(logging.INFO), Client("127.0.0.1:1", credentials):
        wait_until(lambda: len(attempts) >= 5)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("fedlora.")]
    assert line.startswith("127.0.0.1:1: cannot be reached (")
    assert line.endswith("; trying again")


# -- clocks and certificates


def from_the_future(authority: Authority, folder: Path, ahead: timedelta) -> ExternalPair:
    """Write a server's certificate from the site's own authority, made by a clock that is ahead of the site's."""
    key, now = certificates.generate_key(), datetime.now(UTC) + ahead
    pair = ExternalPair(folder / "future.pem", folder / "future.key")
    own = (folder / "identity" / "ca.key").read_bytes(), authority.ca_pem
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificates.server_certificate(key, authority=own, now=now) + authority.ca_pem)
    return pair


def first_line(address: str, credentials: Credentials, caplog: pytest.LogCaptureFixture) -> str:
    """Return what a site says first of a server that it cannot connect to."""
    with caplog.at_level(logging.WARNING, "fedlora"), Client(address, lambda: credentials):
        wait_until(lambda: bool(caplog.records))
    return caplog.records[0].getMessage()


@pytest.mark.parametrize("hours", [-1, 1])
def test_case_27_a_server_whose_clock_is_an_hour_away_is_connected_to(
    authority: Authority, tmp_path: Path, hours: int
) -> None:
    credentials = enrolled(authority, "north", now=datetime.now(UTC) + hours * HOUR)
    with (
        open_port(tmp_path, authority, pair=from_the_future(authority, tmp_path, hours * HOUR)) as port,
        Client(port.address, lambda: credentials) as client,
    ):
        client.wait_until_connected()
    assert client.error is None


def test_a_server_from_the_future_is_said_by_the_clocks(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = from_the_future(authority, tmp_path, 26 * HOUR)
    with open_port(tmp_path, authority, pair=pair) as port:
        line = first_line(port.address, enrolled(authority, "north"), caplog)
    assert "this machine's clock says" in line
    assert "the server's certificate begins on" in line


def test_another_server_at_the_address_is_said(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Authority.open(tmp_path / "other", datetime.now(UTC))
    with open_port(tmp_path, other) as port:
        line = first_line(port.address, enrolled(authority, "north"), caplog)
    assert "it shows the certificate of another authority than this site has enrolled with" in line


def test_case_34_a_site_whose_own_certificate_is_over_is_told_so(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_port(tmp_path, authority) as port:
        old = enrolled(authority, "north", now=datetime.now(UTC) - timedelta(days=91))
        line = first_line(port.address, old, caplog)
    assert "this site's certificate ended on" in line


class LateServer(SessionServiceServicer):
    """Welcomes whoever comes with a clock that is hours behind."""

    def Connect(
        self, request_iterator: Iterator[session_pb2.ConnectRequest], _context: grpc.ServicerContext
    ) -> Iterator[session_pb2.ConnectResponse]:
        next(request_iterator)
        then = int((datetime.now(UTC) - 26 * HOUR).timestamp())
        welcome = session_pb2.Welcome(
            protocol=PROTOCOL, version="0.1", run_toml=to_toml(RUN, comments=False), unix_seconds=then
        )
        yield session_pb2.ConnectResponse(welcome=welcome)
        yield session_pb2.ConnectResponse(drain=session_pb2.Drain(is_finished=True))


@contextmanager
def late_server() -> Iterator[str]:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_SessionServiceServicer_to_server(LateServer(), server)
        number = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{number}"
        finally:
            server.stop(None).wait()


def test_clocks_that_are_apart_are_said_when_a_site_connects(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedlora"), late_server() as address, Client(address) as client:
        client.wait_for_end()
    assert [record.getMessage() for record in caplog.records] == [
        "this machine's clock is 26.0 h ahead of the server's; set the wrong one: certificates have a begin and an end"
    ]
