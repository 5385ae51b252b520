"""A site's way to the server: one kind of IP alone, and proxies."""

import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from connect_proxy import ConnectProxy

sys.path.append(str(Path(__file__).parents[1] / "server"))

from open_port import (
    DAY,
    Conversation,
    OpenPort,
    every_rpc,
    named,
    open_port,
    outcome_of,
)

from fedlora.client.site.joining import credentials_of, enrol
from fedlora.common.channels import open_channel
from fedlora.common.errors import ConfigError, RunError
from fedlora.server.identity.authority import Authority

NORTH = named("north")
CHECK = next(rpc for rpc in every_rpc() if rpc.full_name == "grpc.health.v1.Health.Check")
LIST = next(rpc for rpc in every_rpc() if rpc.name == "ListAdapters")
SERVED = (grpc.StatusCode.OK, "")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine has set is not for the tests."""
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path) as port:
        yield port


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", datetime.now(UTC))


def invitation(authority: Authority) -> str:
    return authority.invite("north", ["digits"], DAY, datetime.now(UTC))


# -- addresses and proxies


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_case_39_a_site_enrols_and_connects_where_there_is_one_kind_of_address_alone(
    authority: Authority, tmp_path: Path, host: str
) -> None:
    with open_port(tmp_path, authority, address=f"{host}:0") as port:
        other = ("::1", socket.AF_INET6) if host == "127.0.0.1" else ("127.0.0.1", socket.AF_INET)
        with socket.socket(other[1]) as nobody:
            assert nobody.connect_ex((other[0], port.number)) != 0
        identity = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
        # The server's certificate names no address: it is known by its authority.
        with open_channel(port.address, credentials_of(identity)) as channel, Conversation(channel) as conversation:
            conversation.hear("welcome")


@pytest.mark.parametrize("login", [None, ("nörth", "p:@/ss")])
@pytest.mark.parametrize("variable", ["https_proxy", "http_proxy", "grpc_proxy", "HTTPS_PROXY"])
def test_a_site_enrols_and_connects_through_an_http_proxy(
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    login: tuple[str, str] | None,
) -> None:
    with open_port(tmp_path, authority) as port, ConnectProxy(credentials=login) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        identity = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
        with open_channel(port.address, credentials_of(identity)) as channel:
            assert outcome_of(channel, CHECK) == SERVED
        # Once to see the server's certificate, once to enrol, and once to ask.
        assert (proxy.num_tunnels, set(proxy.targets)) == (3, {port.address})
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
        assert proxy.num_tunnels == 3


def test_a_password_that_nobody_has_escaped_is_the_proxys_all_the_same(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_port(tmp_path, authority) as port, ConnectProxy(credentials=("me", "p#a@s/s?")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:p#a@s/s?@127.0.0.1:{proxy.port}/")
        identity = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
        with open_channel(port.address, credentials_of(identity)) as channel:
            assert outcome_of(channel, CHECK) == SERVED
        assert proxy.num_tunnels == 3


def test_a_proxy_that_refuses_is_said(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_port(tmp_path, authority) as port, ConnectProxy(credentials=("somebody", "else")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(RunError, match=r"cannot be reached .*407"):
            enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")


def test_plain_text_goes_to_loopback_alone_and_through_no_proxy(
    port: OpenPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy() as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        with open_channel(port.address, None) as channel:
            assert outcome_of(channel, CHECK) == SERVED
        assert proxy.targets == ()
    with pytest.raises(ConfigError, match=r"for loopback alone; 192\.0\.2\.1 is another machine"):
        open_channel("192.0.2.1:8470", None)
