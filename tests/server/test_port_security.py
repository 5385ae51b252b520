"""Case 34: whoever has no good certificate for this run is refused, by every rpc on the port."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

sys.path.append(str(Path(__file__).parent))

from open_port import (
    DAY,
    Conversation,
    OpenPort,
    enrolled,
    every_rpc,
    exchange_of,
    invited,
    named,
    open_port,
    outcome_of,
    refusal,
)

from fedlora.common import certificates
from fedlora.common.channels import Credentials, open_channel
from fedlora.common.errors import ConfigError
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.port import ExternalPair, Port, ServerCertificates
from fedlora.v1 import exchange_pb2, messages_pb2, session_pb2

RPCS = {str(rpc.full_name): rpc for rpc in every_rpc()}
ENROL, CHECK = "fedlora.v1.EnrolmentService.Enrol", "grpc.health.v1.Health.Check"
# What a server of many runs answers to a site of any.
OF_THE_SERVER = (
    "fedlora.v1.SessionService.Connect", "fedlora.v1.EnrolmentService.Renew", CHECK, "grpc.health.v1.Health.Watch",
)  # fmt: skip
OK, DENIED = grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED

Outcome = tuple[grpc.StatusCode, str]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def authority(identity: Path) -> Authority:
    return Authority.open(identity, datetime.now(UTC))


@pytest.fixture(scope="module", params=[False, True], ids=["one run", "many runs"])
def port(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[OpenPort]:
    """Give a server of one run, and one of many."""
    with open_port(tmp_path_factory.mktemp("server"), authority, has_hall=request.param) as port:
        yield port


@pytest.fixture(scope="module")
def north(authority: Authority) -> Credentials:
    return enrolled(authority, "north")


def outcomes(port: OpenPort, credentials: Credentials) -> dict[str, Outcome]:
    """Return what comes of each rpc."""
    with open_channel(port.address, credentials) as channel:
        return {name: outcome_of(channel, rpc) for name, rpc in RPCS.items()}


def everywhere(code: str, *, enrol: str) -> dict[str, Outcome]:
    """Return a refusal by each rpc, with a code of its own by Enrol."""
    return {name: (DENIED, enrol if name == ENROL else code) for name in RPCS}


# -- refused before anything is read


def with_the_authority_alone(port: OpenPort, authority: Authority) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(authority.ca_pem)
    options = [("grpc.ssl_target_name_override", certificates.SERVER_NAME)]
    return grpc.secure_channel(port.address, credentials, options)


def plain_text(port: OpenPort, _authority: Authority) -> grpc.Channel:
    return grpc.insecure_channel(port.address)


def expired(port: OpenPort, authority: Authority) -> grpc.Channel:
    return open_channel(port.address, enrolled(authority, "old", now=datetime.now(UTC) - 91 * DAY))


def of_another_authority(port: OpenPort, authority: Authority) -> grpc.Channel:
    foreign = enrolled(Authority.open(port.folder / "foreign", datetime.now(UTC)), "north")
    return open_channel(port.address, replace(foreign, authority=authority.ca_pem))


def invited_last_month(port: OpenPort, authority: Authority) -> grpc.Channel:
    return open_channel(port.address, invited(authority, "late", datetime.now(UTC) - 30 * DAY))


def the_servers_own(port: OpenPort, authority: Authority) -> grpc.Channel:
    key, chain = authority.server_pair(datetime.now(UTC))
    return open_channel(port.address, Credentials(key, chain, authority.ca_pem, certificates.SERVER_NAME))


@pytest.mark.parametrize(
    "caller", [with_the_authority_alone, plain_text, expired, of_another_authority, invited_last_month, the_servers_own]
)
def test_no_rpc_is_there_for_who_has_no_good_certificate(
    port: OpenPort, authority: Authority, north: Credentials, caller: Callable[[OpenPort, Authority], grpc.Channel]
) -> None:
    for name, rpc in RPCS.items():
        with caller(port, authority) as channel:
            assert (name, outcome_of(channel, rpc, named("north"))[0]) == (name, grpc.StatusCode.UNAVAILABLE)
    # The port is there all the time.
    with open_channel(port.address, north) as channel:
        assert outcome_of(channel, RPCS[CHECK]) == (OK, "")


# -- let in by TLS, and refused by name


def test_a_revoked_site_is_refused_by_every_rpc(port: OpenPort, authority: Authority) -> None:
    credentials = enrolled(authority, "left")
    authority.revoke("left")
    assert outcomes(port, credentials) == everywhere("revoked", enrol="not_invited")


def test_a_site_of_another_run_is_refused_by_every_rpc(port: OpenPort, authority: Authority) -> None:
    credentials = enrolled(authority, "elsewhere", "another run")
    found, expected = outcomes(port, credentials), everywhere("other_run", enrol="not_invited")
    if port.hall is not None:
        # It may wait for its run, and be looked after meanwhile.
        assert {found.pop(name)[0] for name in OF_THE_SERVER} <= {OK, grpc.StatusCode.FAILED_PRECONDITION, DENIED}
        expected = {name: outcome for name, outcome in expected.items() if name not in OF_THE_SERVER}
    assert found == expected


def test_an_invitation_is_good_for_nothing_but_to_enrol(port: OpenPort, authority: Authority) -> None:
    found = outcomes(port, invited(authority, "guest"))
    status, words = found.pop(ENROL)
    assert found == {name: (DENIED, "not_a_site") for name in RPCS if name != ENROL}
    # An empty request is of no version.
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    assert words.startswith("version: ")


def test_a_site_whose_record_is_damaged_or_gone_is_refused_by_every_rpc(
    port: OpenPort, authority: Authority, identity: Path
) -> None:
    credentials = enrolled(authority, "lost")
    (record,) = identity.glob("sites/lost-*.json")
    record.write_text("{")
    damaged = dict.fromkeys(RPCS, (grpc.StatusCode.UNAVAILABLE, "damaged_record"))
    assert outcomes(port, credentials) == {**damaged, ENROL: (DENIED, "not_invited")}
    record.unlink()
    assert outcomes(port, credentials) == everywhere("unknown_site", enrol="not_invited")


def test_every_rpc_is_on_the_port_for_a_site_of_the_run(port: OpenPort, north: Credentials) -> None:
    port.registry.close()  # Who watches is told that the run is over.
    found = outcomes(port, north)
    statuses = {name: status for name, (status, _) in found.items()}
    assert not set(statuses.values()) & {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}
    # By Enrol as a site that is there, and by QueryWriteStatus and Write without a ticket.
    assert {name: code for name, (status, code) in found.items() if status is DENIED} == {
        ENROL: "not_invited",
        "fedlora.v1.AdapterExchangeService.QueryWriteStatus": "ticket",
        "fedlora.v1.AdapterExchangeService.Write": "ticket",
        "fedlora.v1.EnrolmentService.Renew": "bad_request",
    }


def test_without_certificates_every_rpc_but_health_asks_for_a_name(tmp_path: Path) -> None:
    with open_port(tmp_path) as port, open_channel(port.address, None) as channel:
        for name, rpc in RPCS.items():
            expected = (grpc.StatusCode.UNAUTHENTICATED, "no_name")
            if name == ENROL:
                expected = (grpc.StatusCode.FAILED_PRECONDITION, "insecure")
            elif name.startswith("grpc.health"):
                expected = (OK, "")
            assert (name, *outcome_of(channel, rpc)) == (name, *expected)


def test_a_port_with_certificates_and_without_a_gate_has_no_health_service(
    authority: Authority, north: Credentials
) -> None:
    credentials = ServerCertificates(authority, None).credentials()
    with (
        Port("127.0.0.1:0", credentials, lambda _server: None) as port,
        open_channel(f"127.0.0.1:{port.number}", north) as channel,
    ):
        assert {outcome_of(channel, rpc)[0] for rpc in RPCS.values()} == {grpc.StatusCode.UNIMPLEMENTED}


# -- as another


def test_a_site_cannot_upload_with_anothers_ticket_nor_by_another_name(
    port: OpenPort, authority: Authority, north: Credentials
) -> None:
    ticket = port.ask_for_update("north")
    blob = messages_pb2.Blob(sha256=b"\1" * 32, size_bytes=10)
    write = exchange_pb2.WriteRequest(ticket=ticket, blob=blob, data=b"0123456789")
    query = exchange_pb2.QueryWriteStatusRequest(ticket=ticket, blob=blob)
    with exchange_of(port.address, enrolled(authority, "south")) as exchange:
        for metadata in ((), named("north")):
            assert refusal(lambda m=metadata: exchange.Write(iter([write]), metadata=m)) == (DENIED, "ticket")  # type: ignore[misc]
            assert refusal(lambda m=metadata: exchange.QueryWriteStatus(query, metadata=m)) == (DENIED, "ticket")  # type: ignore[misc]
    with exchange_of(port.address, north) as exchange:
        assert exchange.QueryWriteStatus(query).committed_bytes == 0


def test_a_site_cannot_answer_for_another(port: OpenPort, authority: Authority, north: Credentials) -> None:
    port.ask_for_update("north", round=2)
    ready = session_pb2.Readiness(description=messages_pb2.SiteDescription(num_examples=1, lora_rank=2))
    with (
        open_channel(port.address, north) as northern,
        open_channel(port.address, enrolled(authority, "south")) as southern,
        Conversation(northern) as owner,
        Conversation(southern, named("north")) as thief,
    ):
        owner.hear("welcome")
        thief.hear("welcome")
        owner.say(readiness=ready)
        request_id = owner.hear("request").request.request_id
        failure = messages_pb2.Failure(code="internal")
        thief.say(answer=session_pb2.Answer(request_id=request_id, failure=failure))
        assert thief.hear("acknowledgement").acknowledgement.refusal == "withdrawn"
        assert port.grid.outstanding("north", request_id) is not None


# -- while connected


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session looks at its certificate every five seconds, which is long for a test."""
    monkeypatch.setattr("fedlora.server.sites.grpc.session._LOOK_SECONDS", 0.1)


@pytest.mark.usefixtures("quick_looks")
def test_the_session_of_a_site_that_is_revoked_ends(port: OpenPort, authority: Authority) -> None:
    credentials = enrolled(authority, "leaving")
    with open_channel(port.address, credentials) as channel, Conversation(channel) as conversation:
        conversation.hear("welcome")
        authority.revoke("leaving")
        assert conversation.hear_end() == (DENIED, "revoked")


@pytest.mark.usefixtures("quick_looks")
def test_a_session_whose_certificate_ends_is_to_connect_again_with_the_next(
    port: OpenPort, authority: Authority
) -> None:
    began = datetime.now(UTC) - certificates.CERTIFICATE_LIFE + timedelta(seconds=4)
    with open_channel(port.address, enrolled(authority, "ending", now=began)) as channel:
        with Conversation(channel) as conversation:
            conversation.hear("welcome")
            assert conversation.hear_end() == (grpc.StatusCode.ABORTED, "connect_again")
        with Conversation(channel) as conversation:
            assert conversation.hear_end() == (DENIED, "expired")


# -- with an authority of one's own


def test_an_external_authoritys_certificates_count_by_the_names_in_the_records(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    ca_key = certificates.generate_key()
    ca = certificates.authority_certificate(ca_key, now=now)
    key = certificates.generate_key()
    pair = ExternalPair(tmp_path / "server.pem", tmp_path / "server.key")
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificates.server_certificate(key, authority=(ca_key, ca), now=now))

    def site(name: str) -> Credentials:
        own = certificates.generate_key()
        request = certificates.signing_request(own, name)
        return Credentials(
            own, certificates.site_certificate(request, name, authority=(ca_key, ca), now=now), ca, "localhost"
        )

    authority = Authority.external(tmp_path / "identity", ca)
    authority.allow("north", ["digits"])
    with pytest.raises(ConfigError, match="no name of a site"):
        authority.allow("../north", ["digits"])
    with open_port(tmp_path, authority, pair=pair) as port:
        assert outcomes(port, site("nobody")) == everywhere("unknown_site", enrol="not_invited")
        port.registry.close()
        found = outcomes(port, site("north"))
    assert found[CHECK] == (OK, "")
    assert found["fedlora.v1.EnrolmentService.Renew"] == (grpc.StatusCode.FAILED_PRECONDITION, "external")
