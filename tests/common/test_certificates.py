"""Keys, certificates and invitation tokens."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from fedlora.common import certificates
from fedlora.common.certificates import parse_token
from fedlora.common.errors import ConfigError

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> tuple[bytes, bytes]:
    return new_authority()


def new_authority() -> tuple[bytes, bytes]:
    key = certificates.generate_key()
    return key, certificates.authority_certificate(key, now=NOW)


def loaded(certificate: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate)


def public(certificate: bytes) -> bytes:
    key = loaded(certificate).public_key()
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_token_holds_a_secret_and_whom_to_trust(authority: tuple[bytes, bytes]) -> None:
    text = certificates.new_token(authority[1])
    token = parse_token(f"  {text}\n")
    assert text.startswith("fl1-")
    assert len(text) == 47
    assert len(token.secret) == 16
    assert certificates.matches_authority(token, authority[1])
    assert not certificates.matches_authority(token, new_authority()[1])
    assert certificates.new_token(authority[1]) != text


def test_a_token_does_not_show_its_secret(authority: tuple[bytes, bytes]) -> None:
    assert "secret" not in repr(parse_token(certificates.new_token(authority[1])))


GOOD = "fl1-" + base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with fl1-"),
        (GOOD[4:], "does not begin with fl1-"),
        (GOOD[:-1], "has 42 characters after fl1-, expected 43; copy it whole"),
        (GOOD + "=", "has 44 characters"),
        (GOOD[:20] + "+" + GOOD[21:], "has a wrong character"),
        (GOOD[:20] + "é" + GOOD[21:], "has a wrong character"),
        (GOOD[:20] + "\n" + GOOD[21:], "has a wrong character"),
        (GOOD[:-1] + "9", "has a wrong character"),
    ],
)
def test_a_token_that_is_not_whole_is_refused_without_being_shown(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_token(text)
    assert text[4:20] not in str(refused.value) or not text
    assert "\n" not in str(refused.value)


def test_server_and_site_derive_the_same_root_from_a_token() -> None:
    token = parse_token(GOOD)
    root = certificates.invitation_root(token, NOW + 7 * DAY, now=NOW)
    again = certificates.invitation_root(token, NOW + 9 * DAY, now=NOW)
    key, leaf = certificates.invitation_pair(token, now=NOW)
    other_key, other_leaf = certificates.invitation_pair(token, now=NOW)
    certificates.check_fits(key, leaf)
    assert public(root) == public(again)
    assert certificates.is_issued_by(leaf, root)
    assert certificates.is_issued_by(other_leaf, again)
    assert key != other_key
    # Pinned: a release that derived another key would refuse every open invitation.
    assert certificates.common_name(root) == "fedlora invitation 9ffdadd01febe29b"
    assert certificates.fingerprint_of(root).hex() == "37123178b60161bb3be616eec4ef3e3c"


def test_another_token_gives_another_root(authority: tuple[bytes, bytes]) -> None:
    one, two = (parse_token(certificates.new_token(authority[1])) for _ in range(2))
    _, leaf = certificates.invitation_pair(one, now=NOW)
    root = certificates.invitation_root(two, NOW + DAY, now=NOW)
    assert not certificates.is_issued_by(leaf, root)
    assert not certificates.is_issued_by(leaf, authority[1])


def test_the_root_of_an_invitation_ends_with_it() -> None:
    root = certificates.invitation_root(parse_token(GOOD), NOW + 7 * DAY, now=NOW)
    assert certificates.expiry(root) == NOW + 7 * DAY


def test_certificates_hold_for_a_clock_that_is_an_hour_behind_or_ahead(authority: tuple[bytes, bytes]) -> None:
    request = certificates.signing_request(certificates.generate_key(), "north")
    token = parse_token(GOOD)
    made = [
        authority[1],
        certificates.invitation_root(token, NOW + DAY, now=NOW),
        certificates.invitation_pair(token, now=NOW)[1],
        certificates.site_certificate(request, "north", authority=authority, now=NOW),
        certificates.server_certificate(certificates.generate_key(), authority=authority, now=NOW),
    ]
    hour = timedelta(hours=1)
    for certificate in map(loaded, made):
        assert certificate.not_valid_before_utc < NOW - hour
        assert certificate.not_valid_after_utc > NOW + hour


def test_a_site_gets_the_name_that_the_server_knows_and_the_key_that_it_asked_for(
    authority: tuple[bytes, bytes],
) -> None:
    key = certificates.generate_key()
    request = certificates.signing_request(key, "somebody else")
    certificate = certificates.site_certificate(request, "north", authority=authority, now=NOW)
    certificates.check_fits(key, certificate)
    assert certificates.common_name(certificate) == "north"
    assert certificates.requested_key(request) == public(certificate)
    assert certificates.is_issued_by(certificate, authority[1])
    assert certificates.expiry(certificate) == NOW + 90 * DAY


def test_a_site_and_a_server_cannot_take_each_others_place(authority: tuple[bytes, bytes]) -> None:
    request = certificates.signing_request(certificates.generate_key(), "north")
    site = loaded(certificates.site_certificate(request, "north", authority=authority, now=NOW))
    server = loaded(certificates.server_certificate(certificates.generate_key(), authority=authority, now=NOW))
    purposes = x509.ExtendedKeyUsage
    assert list(site.extensions.get_extension_for_class(purposes).value) == [x509.OID_CLIENT_AUTH]
    assert list(server.extensions.get_extension_for_class(purposes).value) == [x509.OID_SERVER_AUTH]
    hosts = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert hosts.get_values_for_type(x509.DNSName) == ["server.fedlora", "localhost"]
    for certificate in (site, server):
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    ("days", "is_due"), [(0, False), (59, False), (59.6, False), (59.7, True), (90, True), (99, True)]
)
def test_a_certificate_is_renewed_in_the_last_third_of_its_life(
    authority: tuple[bytes, bytes], days: float, is_due: bool
) -> None:
    certificate = certificates.server_certificate(certificates.generate_key(), authority=authority, now=NOW)
    assert certificates.needs_renewal(certificate, NOW + days * DAY) == is_due


def test_a_request_that_somebody_changed_is_refused() -> None:
    request = certificates.signing_request(certificates.generate_key(), "north")
    der = x509.load_pem_x509_csr(request).public_bytes(serialization.Encoding.DER)
    forged = x509.load_der_x509_csr(der.replace(b"north", b"south")).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(ConfigError, match="not signed with its own key"):
        certificates.requested_key(forged)


def test_a_request_for_another_kind_of_key_is_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for request in (
        builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
        builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    ):
        with pytest.raises(ConfigError, match="expected one on P-256"):
            certificates.requested_key(request.public_bytes(serialization.Encoding.PEM))


def test_a_signature_is_looked_at_and_not_only_the_issuers_name(authority: tuple[bytes, bytes]) -> None:
    forger = certificates.generate_key()
    request = certificates.signing_request(certificates.generate_key(), "north")
    forged = certificates.site_certificate(request, "north", authority=(forger, authority[1]), now=NOW)
    assert loaded(forged).issuer == loaded(authority[1]).subject
    assert not certificates.is_issued_by(forged, authority[1])
    assert not certificates.is_issued_by(b"nothing", authority[1])


def test_what_is_no_certificate_or_key_is_named_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no certificate in PEM"):
        certificates.common_name(b"nothing")
    with pytest.raises(ConfigError, match="no private key in PEM"):
        certificates.signing_request(b"nothing", "north")
    with pytest.raises(ConfigError, match="no signing request in PEM"):
        certificates.requested_key(b"nothing")


@pytest.mark.parametrize("name", ["north", "St. Mary's 2", "Zürich", "a" * 60, "北"])
def test_a_name_that_people_can_read_is_taken(authority: tuple[bytes, bytes], name: str) -> None:
    request = certificates.signing_request(certificates.generate_key(), certificates.check_site_name(name))
    certificate = certificates.site_certificate(request, name, authority=authority, now=NOW)
    assert certificates.common_name(certificate) == name


@pytest.mark.parametrize("name", ["", "a" * 61, "a/b", "a\\b", ".north", "a\nb", "a\0", " north", "north ", "北" * 22])
def test_a_name_that_no_certificate_or_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"expected|shorten"):
        certificates.check_site_name(name)
