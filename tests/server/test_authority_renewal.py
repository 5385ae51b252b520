"""The authority's certificate comes to its end and is renewed: who has enrolled before goes on, over real TLS."""

import logging
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

sys.path.append(str(Path(__file__).parent))

from open_port import DAY, enrolled, invited, open_port, outcome_of

from fedlora.client.site.identity import SiteIdentity
from fedlora.client.site.joining import credentials_of, enrol, renewed
from fedlora.common import certificates
from fedlora.common.certificates import authority_certificate, expiry, fingerprint_of
from fedlora.common.channels import Credentials, open_channel
from fedlora.server.identity.authority import Authority
from fedlora.v1 import registry_pb2

LIST: MethodDescriptor = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].methods_by_name["ListAdapters"]
LIFE = timedelta(days=3652)


def is_let_in(address: str, credentials: Credentials) -> bool:
    with open_channel(address, credentials) as channel:
        status, _ = outcome_of(channel, LIST)
    return status is grpc.StatusCode.OK


def test_who_enrolled_before_a_renewal_goes_on_and_gets_the_new_certificate_with_its_own(tmp_path: Path) -> None:
    """The command renews while a server runs; two thirds of the former authority's life are not over yet."""
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path / "identity", now - LIFE / 2)
    former = authority.ca_pem
    with open_port(tmp_path, authority) as port:
        token = authority.invite("north", ["digits"], 7 * DAY, now)
        identity = enrol(port.address, token, name="north", state=tmp_path / "north")
        waiting = invited(authority, "south")
        end = Authority.open(tmp_path / "identity", now).renew_authority(now)
        assert abs(end - now - LIFE) < DAY
        # By what it has enrolled with, and by what it has renewed to.
        assert identity.ca_pem == former
        assert is_let_in(port.address, credentials_of(identity))
        again = renewed(port.address, identity, state=tmp_path / "north")
        assert again.ca_pem == authority.ca_pem != former
        assert expiry(again.ca_pem) == end
        assert fingerprint_of(again.ca_pem) == fingerprint_of(former)
        assert is_let_in(port.address, credentials_of(again))
        assert SiteIdentity.load(tmp_path / "north", port.address) == again
        # A token from before is good, and so is one of the same authority's servers to come.
        with open_channel(port.address, waiting) as channel:
            assert outcome_of(channel, LIST)[1] == "not_a_site"
    assert Authority.open(tmp_path / "identity", now).ca_pem == again.ca_pem


@pytest.mark.parametrize(("days_left", "is_renewed"), [(1300, False), (1200, True), (-5, True)])
def test_an_authority_is_renewed_by_itself_in_the_last_third_of_its_life(
    tmp_path: Path, days_left: int, is_renewed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    now = datetime.now(UTC)
    made = now - LIFE + timedelta(days=days_left)
    before = Authority.open(tmp_path / "identity", made)
    running = Authority.open(tmp_path / "identity", made)
    assert running.server_pair(made)[1].endswith(before.ca_pem)
    # One that runs is asked at each connection; another is opened.
    key, chain = running.server_pair(now)
    assert (running.ca_pem != before.ca_pem) == is_renewed
    assert chain.endswith(running.ca_pem)
    assert certificates.is_issued_by(chain, running.ca_pem)
    assert Authority.open(tmp_path / "identity", now).ca_pem == running.ca_pem
    assert ("Renewed the authority; it is good until" in caplog.text) == is_renewed
    assert key


@pytest.mark.parametrize("is_new", [True, False], ids=["made ahead", "renewed ahead"])
def test_what_was_made_while_the_clock_was_ahead_is_replaced_once_it_is_right(tmp_path: Path, is_new: bool) -> None:
    """The server shows at once what sites take, without a restart, and is known by the same key."""
    now = datetime.now(UTC)
    ahead = now + LIFE * 0.9
    authority = Authority.open(tmp_path / "identity", ahead if is_new else now)
    authority.server_pair(ahead)
    of_the_future = authority.ca_pem
    assert certificates.beginning(of_the_future) > now
    with open_port(tmp_path, authority) as port:
        identity = enrol(
            port.address, authority.invite("north", ["digits"], DAY, now), name="north", state=tmp_path / "north"
        )
        assert is_let_in(port.address, credentials_of(identity))
    again = Authority.open(tmp_path / "identity", now)
    for certificate in (again.ca_pem, again.server_pair(now)[1], identity.ca_pem, identity.certificate_pem):
        assert certificates.clock_trouble(certificate, now, whose="the") == ""
    assert fingerprint_of(again.ca_pem) == fingerprint_of(of_the_future)


def test_a_site_that_was_away_over_the_end_of_its_authority_needs_an_invitation_and_is_told_why(
    tmp_path: Path,
) -> None:
    now = datetime.now(UTC)
    authority = Authority.open(tmp_path / "identity", now)
    credentials = enrolled(authority, "north")
    key = (tmp_path / "identity" / "ca.key").read_bytes()
    late = replace(credentials, authority=authority_certificate(key, now=now - LIFE - DAY))
    with open_port(tmp_path, authority) as port:
        assert is_let_in(port.address, credentials)
        assert not is_let_in(port.address, late)
        again = enrol(
            port.address, authority.invite("north", ["digits"], DAY, now), name="north", state=tmp_path / "north"
        )
        assert is_let_in(port.address, credentials_of(again))
