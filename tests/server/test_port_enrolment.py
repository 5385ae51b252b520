"""How a site comes to its certificate over a real port: once, from the right server, and the token stays at home."""

import asyncio
import base64
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from relay import Connection, LoopbackServer

sys.path.append(str(Path(__file__).parent))

from open_port import DAY, OpenPort, every_rpc, open_port, outcome_of

from fedlora.client.site.identity import SiteIdentity, identity_files
from fedlora.client.site.joining import credentials_of, enrol, renewed
from fedlora.common import certificates
from fedlora.common.certificates import new_token, parse_token
from fedlora.common.channels import Credentials, open_channel
from fedlora.common.errors import ConfigError, RunError, StoreError
from fedlora.common.wire import PROTOCOL
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.port import ExternalPair
from fedlora.v1 import enrolment_pb2
from fedlora.v1.enrolment_pb2_grpc import (
    EnrolmentServiceServicer,
    EnrolmentServiceStub,
    add_EnrolmentServiceServicer_to_server,
)

CHECK = next(rpc for rpc in every_rpc() if rpc.full_name == "grpc.health.v1.Health.Check")
USED_UP = "does not take this token|used up"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "identity", datetime.now(UTC))


@pytest.fixture
def port(authority: Authority, tmp_path: Path) -> Iterator[OpenPort]:
    with open_port(tmp_path, authority) as port:
        yield port


def invitation(authority: Authority, name: str = "north", *, age: timedelta = timedelta()) -> str:
    return authority.invite(name, ["digits"], 7 * DAY, datetime.now(UTC) - age)


def is_let_in(port: OpenPort, identity: SiteIdentity) -> bool:
    with open_channel(port.address, credentials_of(identity)) as channel:
        return outcome_of(channel, CHECK) == (grpc.StatusCode.OK, "")


def test_an_invited_site_enrols_and_is_let_in(port: OpenPort, authority: Authority, tmp_path: Path) -> None:
    identity = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
    assert identity == SiteIdentity.load(tmp_path / "north")
    assert (identity.name, identity.ca_pem) == ("north", authority.ca_pem)
    assert is_let_in(port, identity)
    assert list((tmp_path / "north").iterdir()) == identity_files(tmp_path / "north")
    assert (tmp_path / "north").stat().st_mode & 0o777 == 0o700


def test_an_invitation_is_taken_up_with_one_key_only(port: OpenPort, authority: Authority, tmp_path: Path) -> None:
    token = invitation(authority)
    first = enrol(port.address, token, name="north", state=tmp_path / "north")
    with pytest.raises(RunError, match=USED_UP):
        enrol(port.address, token, name="north", state=tmp_path / "thief")
    assert not SiteIdentity.exists(tmp_path / "thief")
    assert is_let_in(port, first)


def test_the_site_itself_may_come_with_a_used_token_again(port: OpenPort, authority: Authority, tmp_path: Path) -> None:
    token = invitation(authority)
    first = enrol(port.address, token, name="north", state=tmp_path / "north")
    assert enrol(port.address, token, name="north", state=tmp_path / "north") == first
    newer = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
    assert newer != first
    assert is_let_in(port, newer)
    assert not is_let_in(port, first)


def test_an_enrolment_that_broke_off_is_repeated_with_the_same_token(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    token, state = invitation(authority), tmp_path / "north"
    in_its_place = state / f"identity-{certificates.fingerprint_of(authority.ca_pem).hex()[:16]}.json"
    in_its_place.mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot write"):
        enrol(port.address, token, name="north", state=state)
    (kept,) = state.glob("enrolling-*.key")
    assert kept.stat().st_mode & 0o777 == 0o600
    in_its_place.rmdir()
    assert is_let_in(port, enrol(port.address, token, name="north", state=state))
    assert not kept.exists()


def test_an_invitation_to_another_name_is_said_and_not_used_up(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    token = invitation(authority)
    with pytest.raises(ConfigError, match=r"is for 'north', and the site file names 'nrth'.* not used up"):
        enrol(port.address, token, name="nrth", state=tmp_path / "nrth.site")
    # From another folder, with another key: it was not bound to the first either.
    assert is_let_in(port, enrol(port.address, token, name="north", state=tmp_path / "north.site"))


def test_a_site_of_another_version_or_of_another_run_does_not_use_its_invitation_up(
    port: OpenPort, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = invitation(authority)
    with monkeypatch.context() as newer:
        newer.setattr("fedlora.client.site.joining.PROTOCOL", PROTOCOL + 1)
        with pytest.raises(RunError, match=r"protocol \d+; at the site: pip install .*\.whl; the token is not used up"):
            enrol(port.address, token, name="north", state=tmp_path / "north")
    assert is_let_in(port, enrol(port.address, token, name="north", state=tmp_path / "north"))
    elsewhere = authority.invite("south", ["another run"], DAY, datetime.now(UTC))
    with pytest.raises(RunError, match="the invitation is to another run than this server's"):
        enrol(port.address, elsewhere, name="south", state=tmp_path / "south")
    (south,) = [record for record in authority.sites() if record.name == "south"]
    assert (south.status, south.enrolled_key) == ("invited", "")


def test_a_folder_that_holds_another_sites_identity_is_refused_before_the_invitation_is_used(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    north = enrol(port.address, invitation(authority), name="north", state=tmp_path / "state")
    token = invitation(authority, "south")
    with pytest.raises(ConfigError, match="holds the identity of 'north', and the site file names 'south'"):
        enrol(port.address, token, name="south", state=tmp_path / "state")
    assert SiteIdentity.load(tmp_path / "state") == north
    assert is_let_in(port, enrol(port.address, token, name="south", state=tmp_path / "south"))


def test_a_site_of_two_servers_keeps_both_identities_and_takes_the_one_of_the_address(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    state = tmp_path / "north"
    first = enrol(port.address, invitation(authority), name="north", state=state)
    with open_port(tmp_path / "other", Authority.open(tmp_path / "other-identity", datetime.now(UTC))) as other:
        assert other.authority is not None
        second = enrol(other.address, invitation(other.authority), name="north", state=state)
        assert is_let_in(other, SiteIdentity.load(state, other.address))
        assert is_let_in(port, SiteIdentity.load(state, port.address))
        renewed(other.address, second, state=state)
    assert SiteIdentity.load(state, port.address) == first
    with pytest.raises(StoreError, match=r"is enrolled with the servers at 127.*, and elsewhere:1 is none of these"):
        SiteIdentity.load(state, "elsewhere:1")


def test_an_enrolled_site_that_is_invited_to_a_second_run_keeps_the_first(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    identity = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
    token = authority.invite("north", ["letters"], DAY, datetime.now(UTC))
    assert is_let_in(port, identity)
    second = enrol(port.address, token, name="north", state=tmp_path / "north")
    assert is_let_in(port, second)
    (record,) = authority.sites()
    assert record.runs == ("digits", "letters")
    authority.revoke("north")
    authority.invite("north", ["letters"], DAY, datetime.now(UTC))
    (record,) = authority.sites()
    assert record.runs == ("letters",)


# -- clocks


@pytest.mark.parametrize("hours", [-26, -1, 1, 26, 24 * 300])
def test_case_27_an_invitation_is_taken_up_whatever_the_sites_clock_says(
    port: OpenPort, authority: Authority, hours: int
) -> None:
    """The pair that a site makes of its token is dated by its own clock, and the server checks it by the server's."""
    token = parse_token(invitation(authority))
    key, certificate = certificates.invitation_pair(token, now=datetime.now(UTC) + timedelta(hours=hours))
    credentials = Credentials(key, certificate, authority.ca_pem, certificates.SERVER_NAME)
    own = certificates.generate_key()
    request = enrolment_pb2.EnrolRequest(
        signing_request=certificates.signing_request(own, "north"), site="north", protocol=PROTOCOL, version="0.1"
    )
    with open_channel(port.address, credentials) as channel:
        response = EnrolmentServiceStub(channel).Enrol(request, timeout=60)
    assert certificates.is_issued_by(response.certificate, authority.ca_pem)


@pytest.mark.parametrize(("hours", "words"), [(26, "begins on"), (-24 * 91, "ended on")])
def test_a_server_from_another_time_is_said_by_the_clocks_and_the_token_is_kept(
    authority: Authority, tmp_path: Path, hours: int, words: str
) -> None:
    """As a site sees it whose clock is 26 hours behind, or three months ahead."""
    now, key = datetime.now(UTC) + timedelta(hours=hours), certificates.generate_key()
    own = (tmp_path / "identity" / "ca.key").read_bytes(), authority.ca_pem
    pair = ExternalPair(tmp_path / "server.pem", tmp_path / "server.key")
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificates.server_certificate(key, authority=own, now=now) + authority.ca_pem)
    token = invitation(authority)
    with open_port(tmp_path, authority, pair=pair) as port:
        with pytest.raises(RunError, match=rf"clock says .*the server's certificate {words} .* the token is not used"):
            enrol(port.address, token, name="north", state=tmp_path / "north")
        assert not (tmp_path / "north").exists()
    with open_port(tmp_path / "mended", authority) as mended:
        assert is_let_in(mended, enrol(mended.address, token, name="north", state=tmp_path / "north"))


@pytest.mark.parametrize("which", ["ended", "withdrawn", "another server's", "made up"])
def test_a_token_that_is_not_good_is_refused(port: OpenPort, authority: Authority, tmp_path: Path, which: str) -> None:
    tokens = {
        "ended": invitation(authority, age=8 * DAY),
        "another server's": invitation(Authority.open(tmp_path / "other", datetime.now(UTC))),
        "made up": new_token(authority.ca_pem),
        "withdrawn": invitation(authority, "south"),
    }
    authority.revoke("south")
    with pytest.raises(RunError, match="does not take this token"):
        enrol(port.address, tokens[which], name="north", state=tmp_path / "north")
    assert not SiteIdentity.exists(tmp_path / "north")


def test_a_server_that_is_away_is_said(tmp_path: Path, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
    with pytest.raises(RunError, match="cannot be reached"):
        enrol(f"127.0.0.1:{number}", invitation(authority), name="north", state=tmp_path / "north")


# -- who is in between


class Mallory(EnrolmentServiceServicer):
    """Enrols whoever comes with an authority of its own, says what it is told to of that, and remembers all it got."""

    def __init__(self, shown_authority: bytes | None) -> None:
        self.key = certificates.generate_key()
        self.ca = certificates.authority_certificate(self.key, now=datetime.now(UTC))
        self.shown_authority = shown_authority or self.ca
        self.seen: list[bytes] = []

    def Enrol(self, request: enrolment_pb2.EnrolRequest, context: grpc.ServicerContext) -> enrolment_pb2.EnrolResponse:
        self.seen.append(request.SerializeToString())
        authenticated: Any = context.auth_context()
        for values in authenticated.values():
            self.seen += values
        self.seen += [ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in authenticated["x509_pem_cert"]]
        certificate = certificates.site_certificate(
            request.signing_request, "north", authority=(self.key, self.ca), now=datetime.now(UTC)
        )
        return enrolment_pb2.EnrolResponse(certificate=certificate, authority=self.shown_authority, site="north")


@contextmanager
def in_between(mallory: Mallory, trusted: bytes) -> Iterator[str]:
    """Give the address of Mallory's server, which lets in who has an invitation's certificate."""
    now, key = datetime.now(UTC), certificates.generate_key()
    chain = certificates.server_certificate(key, authority=(mallory.key, mallory.ca), now=now)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_EnrolmentServiceServicer_to_server(mallory, server)
        credentials = grpc.ssl_server_credentials([(key, chain)], trusted, require_client_auth=True)
        number = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            yield f"127.0.0.1:{number}"
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize("shows_the_real_authority", [False, True])
def test_a_man_in_the_middle_is_found_out_and_does_not_get_the_token(
    authority: Authority, tmp_path: Path, shows_the_real_authority: bool
) -> None:
    text = invitation(authority)
    mallory = Mallory(authority.ca_pem if shows_the_real_authority else None)
    # It can have the invitation's certificate, which goes over every line; at worst it has the server's disk.
    roots = b"".join(authority.pending_roots(datetime.now(UTC)))
    with (
        in_between(mallory, roots) as address,
        pytest.raises(RunError, match="is not the server that this invitation is from"),
    ):
        enrol(address, text, name="north", state=tmp_path / "north")
    assert not SiteIdentity.exists(tmp_path / "north")
    assert mallory.seen
    assert not any(is_in(text, seen) for seen in mallory.seen)


def is_in(token: str, traffic: bytes) -> bool:
    """Return whether a token or its secret is in some bytes, in one of the usual forms."""
    secret = parse_token(token).secret
    forms = (token.encode(), secret, secret.hex().encode(), base64.b64encode(secret)[:-2])
    return any(form in traffic for form in forms)


def test_the_token_is_not_in_the_traffic(port: OpenPort, authority: Authority, tmp_path: Path) -> None:
    traffic: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}

    async def record(connection: Connection) -> None:
        target = await connection.open_target("127.0.0.1", port.number)
        loop = asyncio.get_running_loop()

        async def carry(source: socket.socket, sink: socket.socket, is_up: bool) -> None:
            while chunk := await loop.sock_recv(source, 65536):
                traffic[is_up] += chunk
                await loop.sock_sendall(sink, chunk)
            sink.shutdown(socket.SHUT_WR)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(carry(connection.client, target, True))
            tasks.create_task(carry(target, connection.client, False))

    token, recorder = invitation(authority), LoopbackServer("127.0.0.1", record)
    try:
        identity = enrol(f"127.0.0.1:{recorder.port}", token, name="north", state=tmp_path / "north")
    finally:
        recorder.close()
    assert all(len(recorded) > 1000 for recorded in traffic.values())
    for recorded in traffic.values():
        assert not is_in(token, bytes(recorded))
        assert identity.key_pem not in recorded


# -- renewal


def test_a_renewal_gives_a_new_certificate_and_the_former_stays_good(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    former = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")
    newer = renewed(port.address, former, state=tmp_path / "north")
    assert SiteIdentity.load(tmp_path / "north") == newer
    assert newer.name == "north"
    assert newer.key_pem != former.key_pem
    assert is_let_in(port, newer)
    assert is_let_in(port, former)
    authority.revoke("north")
    assert not is_let_in(port, newer)
    with pytest.raises(RunError, match=r"the certificate ends on .*: revoked"):
        renewed(port.address, newer, state=tmp_path / "north")
    assert SiteIdentity.load(tmp_path / "north") == newer


def test_the_servers_certificate_is_exchanged_without_a_restart(
    port: OpenPort, authority: Authority, tmp_path: Path
) -> None:
    identity = enrol(port.address, invitation(authority), name="north", state=tmp_path / "north")

    def shown() -> bytes:
        context = ssl.create_default_context(cadata=authority.ca_pem.decode())
        with (
            socket.create_connection(("127.0.0.1", port.number), timeout=10) as raw,
            context.wrap_socket(raw, server_hostname=certificates.SERVER_NAME) as secured,
        ):
            return secured.getpeercert(binary_form=True) or b""

    before = shown()
    with open_channel(port.address, credentials_of(identity)) as standing:
        assert outcome_of(standing, CHECK) == (grpc.StatusCode.OK, "")
        (tmp_path / "identity" / "server.pem").unlink()
        assert is_let_in(port, identity)
        assert shown() != before
        assert shown() == shown()
        assert outcome_of(standing, CHECK) == (grpc.StatusCode.OK, "")
