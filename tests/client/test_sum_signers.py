"""By what sites know each other's keys: certificates of one authority, and the key that was there the first time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedlora.client.site.identity import SiteIdentity
from fedlora.client.site.sum_signers import PEERS_FILE, SiteSigners
from fedlora.client.worker.sums.signer import Signer, SumsRefused
from fedlora.common import certificates
from fedlora.common.errors import ConfigError, StoreError
from fedlora.secure_sums.keys import RoundKeys, SumPlan

NOW = datetime.now(UTC)
Authority = tuple[bytes, bytes]


def authority() -> Authority:
    key = certificates.generate_key()
    return key, certificates.authority_certificate(key, now=NOW)


def enrolled(folder: Path, name: str, by: Authority, *, now: datetime = NOW) -> Signer:
    """Return the signer of a site that an authority has given a certificate."""
    key = certificates.generate_key()
    request = certificates.signing_request(key, name)
    SiteIdentity(key, certificates.site_certificate(request, name, authority=by, now=now), by[1]).save(folder / name)
    return SiteSigners(folder / name, "server:9443")(name)


def test_sites_of_one_authority_know_each_other_and_their_signatures(tmp_path: Path) -> None:
    ours = authority()
    north, south = (enrolled(tmp_path, name, ours) for name in ("north", "south"))
    identity = south.identity()
    north.require_known("south", identity)
    message = RoundKeys.made(1).public("south").signed_bytes(SumPlan("run", 1, 0, ("north", "south"), 2, 1))
    assert north.is_signed(message, south.sign(message), identity=identity)
    assert not north.is_signed(message, north.sign(message), identity=identity)
    assert not north.is_signed(b"other", south.sign(message), identity=identity)


def test_a_certificate_that_was_renewed_changes_nothing(tmp_path: Path) -> None:
    ours = authority()
    north, south = (enrolled(tmp_path, name, ours) for name in ("north", "south"))
    north.require_known("south", south.identity())
    before = south.identity()
    south = enrolled(tmp_path, "south", ours)
    assert south.identity() != before
    north.require_known("south", south.identity())


def test_who_has_no_certificate_of_the_authority_for_that_name_is_not_known(tmp_path: Path) -> None:
    ours, others = authority(), authority()
    north, south = (enrolled(tmp_path, name, ours) for name in ("north", "south"))
    stranger = enrolled(tmp_path / "elsewhere", "south", others)
    late = enrolled(tmp_path / "late", "south", ours, now=NOW - timedelta(days=200))
    identity = south.identity()
    for forged, why in (
        (stranger.identity(), "another authority"),
        (late.identity(), "no certificate that is good"),
        (enrolled(tmp_path, "west", ours).identity(), "is for 'west'"),
        (bytes(32) + identity[32:], "not signed by its certificate"),
        (identity[:32], "no certificate that is good"),
        (b"", "no certificate that is good"),
    ):
        with pytest.raises(SumsRefused, match=why):
            north.require_known("south", forged)
    north.require_known("south", identity)


def test_the_first_key_of_a_site_is_said_and_the_one_that_is_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that issues certificates could give out one of its making, and does so too late."""
    ours = authority()
    north, south = (enrolled(tmp_path, name, ours) for name in ("north", "south"))
    north.require_known("south", south.identity())
    north.require_known("south", south.identity())
    assert [record.getMessage() for record in caplog.records if "first time" in record.getMessage()] == [
        "secure sums with south, whom this site sees for the first time: its key is "
        f"{south.identity()[:32].hex()} from here on"
    ]
    forged = enrolled(tmp_path / "forged", "south", ours)
    with pytest.raises(SumsRefused, match=r"another key than before.*peers[.]json"):
        SiteSigners(tmp_path / "north", "server:9443")("north").require_known("south", forged.identity())
    peers = tmp_path / "north" / PEERS_FILE
    peers.write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        north.require_known("south", south.identity())
    peers.unlink()
    north.require_known("south", forged.identity())


def test_without_certificates_the_first_key_is_all(tmp_path: Path) -> None:
    north, south, other = (
        SiteSigners(tmp_path / folder, "server:9443", is_insecure=True)(name)
        for folder, name in (("north", "north"), ("south", "south"), ("other", "south"))
    )
    north.require_known("south", south.identity())
    with pytest.raises(SumsRefused, match="another key"):
        north.require_known("south", other.identity())


def test_a_signing_key_is_this_users_alone_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    north = SiteSigners(tmp_path, "server:9443", is_insecure=True)
    identity = north("north").identity()
    assert north("north").identity() == identity
    assert (tmp_path / "sums.key").stat().st_mode & 0o077 == 0
    (tmp_path / "sums.key").write_bytes(b"short")
    with pytest.raises(StoreError, match="damaged"):
        north("north")


@pytest.mark.parametrize("kind", ["p256", "rsa", "ed25519"])
def test_keys_of_all_kinds_sign(kind: str) -> None:
    """An authority of one's own may have given certificates for any."""
    if kind == "p256":
        key_pem = certificates.generate_key()
        certificate = certificates.authority_certificate(key_pem, now=NOW)
    else:
        key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=1))
        )
        signed = builder.sign(key, None if kind == "ed25519" else hashes.SHA256())
        certificate = signed.public_bytes(Encoding.PEM)
    signature = certificates.signed(key_pem, b"message")
    assert certificates.is_signed_by(certificate, b"message", signature)
    assert not certificates.is_signed_by(certificate, b"another", signature)
    assert not certificates.is_signed_by(certificate, b"message", signature[::-1])
    assert not certificates.is_signed_by(b"no certificate", b"message", signature)
    with pytest.raises(ConfigError):
        certificates.signed(b"no key", b"message")
