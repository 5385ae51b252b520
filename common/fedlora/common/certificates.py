"""Keys, certificates and invitations, all PEM in bytes: who server and sites are to each other.

The server's authority signs a certificate for each site, and one for the server under the fixed name SERVER_NAME,
wherever it is reached. A site without a certificate presents one that it makes from its invitation: the token's secret
gives the key of an *invitation root*, of which the server keeps the self-signed certificate alone. The secret never
travels, cannot be had from what the server stores, and the token's other half says which authority to trust.

HKDF: RFC 5869. The key is P-256, as everywhere here: every TLS library takes it, and a derived number makes one.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.common.errors import ConfigError

SERVER_NAME = "server.fedlora"
CERTIFICATE_LIFE = timedelta(days=90)

_AUTHORITY_LIFE = timedelta(days=3652)
# The other side's clock may be behind.
_STARTS_EARLY = timedelta(days=1)
# Dated by the site, whose clock may be anywhere: what counts are the dates of the root, which are the server's.
_INVITED_LEAF_LIFE = timedelta(days=365)

_PREFIX = "fl1-"
_SECRET_BYTES = 16
_FINGERPRINT_BYTES = 16
_TOKEN_CHARACTERS = 43
# The order of P-256's group: private keys are 1 to _ORDER - 1.
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_NAME_CHARACTERS = 60
_NAME_BYTES = 64  # of a certificate's common name

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Token:
    """An invitation: the secret that its key is derived from, and whom the site should trust."""

    secret: bytes = field(repr=False)
    authority_fingerprint: bytes


def check_site_name(name: str) -> str:
    """Return `name`, which a certificate can hold and a person can read.

    Raises:
        ConfigError: it is something else.
    """
    if not 0 < len(name) <= _NAME_CHARACTERS or not name.isprintable() or name != name.strip():
        raise ConfigError(f"{name!r} is no name of a site; expected 1 to {_NAME_CHARACTERS} printable characters")
    if name.startswith(".") or "/" in name or "\\" in name:
        raise ConfigError(f"{name!r} is no name of a site; expected one without slash, backslash or leading dot")
    if (size := len(name.encode())) > _NAME_BYTES:
        raise ConfigError(f"{name!r} has {size} bytes in UTF-8, and a certificate holds {_NAME_BYTES}; shorten it")
    return name


def generate_key() -> bytes:
    """Return a new private key."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def signing_request(key: bytes, name: str) -> bytes:
    """Return a request for a certificate for `key`. The name in it is for people: the server knows the site's."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(name))
    return builder.sign(_load_key(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def requested_key(request: bytes) -> bytes:
    """Return the public key in a signing request, DER.

    Raises:
        ConfigError: it is damaged, its sender does not have the private key, or the key is not on P-256.
    """
    return _der(_load_requested_key(request))


def new_token(authority: bytes) -> str:
    """Return a new invitation token, as it is shown, of the server with this authority."""
    raw = secrets.token_bytes(_SECRET_BYTES) + fingerprint_of(authority)
    return _PREFIX + _base64(raw)


def parse_token(text: str) -> Token:
    """Return the token in what a person was given.

    Raises:
        ConfigError: it is cut or mistyped. The message leaves it out: it is a secret.
    """
    found = text.strip()
    if not found.startswith(_PREFIX):
        raise ConfigError(f"the token does not begin with {_PREFIX}; expected the whole of what the invitation gave")
    body = found.removeprefix(_PREFIX)
    if len(body) != _TOKEN_CHARACTERS:
        raise ConfigError(
            f"the token has {len(body)} characters after {_PREFIX}, expected {_TOKEN_CHARACTERS}; copy it whole"
        )
    raw = base64.urlsafe_b64decode(body + "=") if re.fullmatch(r"[A-Za-z0-9_-]+", body) else b""
    if _base64(raw) != body:
        raise ConfigError("the token has a wrong character; copy it from the invitation")
    return Token(raw[:_SECRET_BYTES], raw[_SECRET_BYTES:])


def invitation_root(token: Token, not_after: datetime, *, now: datetime) -> bytes:
    """Return the certificate that a server keeps of an invitation until `not_after`, and trusts."""
    key, name = _derived_key(token), _derived_name(token)
    return _sign(name, key.public_key(), _Issuer(name, key), starts=now, ends=not_after)


def invitation_pair(token: Token, *, now: datetime) -> tuple[bytes, bytes]:
    """Return a fresh key and its certificate, which an invited site presents to the server."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = _Issuer(_derived_name(token), _derived_key(token))
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH
    leaf = _sign(
        _name("invited site"),
        key.public_key(),
        issuer,
        starts=now - _INVITED_LEAF_LIFE,
        ends=now + _INVITED_LEAF_LIFE,
        purpose=purpose,
    )
    return _key_pem(key), leaf


def authority_certificate(key: bytes, *, now: datetime) -> bytes:
    """Return a new authority's certificate of itself."""
    own = _load_key(key)
    public = own.public_key()
    name = _name(f"fedlora authority {hashlib.sha256(_der(public)).hexdigest()[:16]}")
    return _sign(name, public, _Issuer(name, own), starts=now, ends=now + _AUTHORITY_LIFE)


def server_certificate(key: bytes, *, authority: tuple[bytes, bytes], now: datetime) -> bytes:
    """Return the certificate of a server with this key, signed by the authority's key and certificate."""
    return _sign(
        _name(SERVER_NAME),
        _load_key(key).public_key(),
        _Issuer.load(authority),
        starts=now,
        ends=now + CERTIFICATE_LIFE,
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        hosts=(SERVER_NAME, "localhost"),
    )


def site_certificate(request: bytes, name: str, *, authority: tuple[bytes, bytes], now: datetime) -> bytes:
    """Return the certificate of a site named `name`, whatever name the request has, signed by the authority.

    Raises:
        ConfigError: the request will not do, as for `requested_key`.
    """
    return _sign(
        _name(name),
        _load_requested_key(request),
        _Issuer.load(authority),
        starts=now,
        ends=now + CERTIFICATE_LIFE,
        purpose=ExtendedKeyUsageOID.CLIENT_AUTH,
    )


def fingerprint_of(certificate: bytes) -> bytes:
    """Return the first 16 bytes of the sha256 of a certificate's public key (SubjectPublicKeyInfo)."""
    return hashlib.sha256(_der(_load_certificate(certificate).public_key())).digest()[:_FINGERPRINT_BYTES]


def matches_authority(token: Token, certificate: bytes) -> bool:
    """Return whether a certificate is of the authority that the token's invitation came from."""
    return secrets.compare_digest(token.authority_fingerprint, fingerprint_of(certificate))


def common_name(certificate: bytes) -> str:
    """Return whom a certificate is for, empty if it does not say.

    Raises:
        ConfigError: it is no certificate. So do the functions below, except `is_issued_by`.
    """
    found = _load_certificate(certificate).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[-1].value) if found else ""


def expiry(certificate: bytes) -> datetime:
    """Return when a certificate ends, in UTC."""
    return _load_certificate(certificate).not_valid_after_utc


def serial(certificate: bytes) -> str:
    """Return a certificate's serial number, hex."""
    return f"{_load_certificate(certificate).serial_number:x}"


def clock_trouble(certificate: bytes, now: datetime, *, whose: str) -> str:
    """Return what is wrong where a certificate is not good at the time that this machine has; nothing if it is.

    Args:
        whose: the certificate, "the server's" say.
    """
    loaded = _load_certificate(certificate)
    begin, end = loaded.not_valid_before_utc, loaded.not_valid_after_utc
    if begin <= now <= end:
        return ""
    here = f"this machine's clock says {_minute(now)}, and {whose} certificate"
    if now < begin:
        return f"{here} begins on {_minute(begin)}; a clock is wrong, here or at the server: set it"
    return f"{here} ended on {_minute(end)}; set the clock if it is wrong here, else the certificate must be renewed"


def beginning(certificate: bytes) -> datetime:
    """Return from when on a certificate is good, in UTC."""
    return _load_certificate(certificate).not_valid_before_utc


def needs_renewal(certificate: bytes, now: datetime) -> bool:
    """Return whether less than a third of a certificate's life is left."""
    loaded = _load_certificate(certificate)
    life = loaded.not_valid_after_utc - loaded.not_valid_before_utc
    return 3 * (loaded.not_valid_after_utc - now) < life


def is_issued_by(certificate: bytes, issuer: bytes) -> bool:
    """Return whether the issuer's key signed a certificate, without anybody between; dates are not looked at."""
    try:
        _load_certificate(certificate).verify_directly_issued_by(_load_certificate(issuer))
    except (ConfigError, ValueError, TypeError, InvalidSignature):
        return False
    return True


def signed(key: bytes, message: bytes) -> bytes:
    """Return the signature of a certificate's key: ECDSA or RSA (PKCS 1 v1.5) with SHA-256, or Ed25519.

    Raises:
        ConfigError: the key is of another kind, or damaged.
    """
    private = _load_any_key(key)
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.sign(message, ec.ECDSA(hashes.SHA256()))
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(message, padding.PKCS1v15(), hashes.SHA256())
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return private.sign(message)
    raise ConfigError(f"a key of the type {type(private).__name__}; expected P-256, RSA or Ed25519")


def is_signed_by(certificate: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature is that of a certificate's key; see `signed`."""
    try:
        public = _load_certificate(certificate).public_key()
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, message)
        else:
            return False
    except (ConfigError, InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def check_fits(key: bytes, certificate: bytes) -> None:
    """Check that a key is its certificate's, be it of any kind.

    Raises:
        ConfigError: it is another's, or one of them is damaged.
    """
    if _der(_load_any_key(key).public_key()) != _der(_load_certificate(certificate).public_key()):
        raise ConfigError(f"the key is not the one of the certificate for {common_name(certificate)!r}")


def check_not_expired(certificate: bytes, now: datetime) -> None:
    """Check that a certificate has not ended.

    Raises:
        ConfigError: it has, or is damaged.
    """
    if (end := expiry(certificate)) <= now:
        raise ConfigError(f"the certificate for {common_name(certificate)!r} expired on {end:%Y-%m-%d %H:%M} UTC")


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class _Issuer:
    name: x509.Name
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, pair: tuple[bytes, bytes]) -> "_Issuer":
        key, certificate = pair
        return cls(_load_certificate(certificate).subject, _load_key(key))


def _sign(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: _Issuer,
    *,
    starts: datetime,
    ends: datetime,
    purpose: x509.ObjectIdentifier | None = None,
    hosts: Sequence[str] = (),
) -> bytes:
    """Return a certificate; without a purpose it is an authority's, which signs others but no further authority."""
    is_authority = purpose is None
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts - _STARTS_EARLY)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(is_authority, 0 if is_authority else None), critical=True)
        .add_extension(_usage(is_authority=is_authority), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if hosts:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _derived_key(token: Token) -> ec.EllipticCurvePrivateKey:
    # 48 bytes for a number of 32: the remainder is then as good as uniform.
    number = int.from_bytes(_derived(token, b"fedlora invitation key", size_bytes=48))
    return ec.derive_private_key(number % (_ORDER - 1) + 1, ec.SECP256R1())


def _derived_name(token: Token) -> x509.Name:
    return _name(f"fedlora invitation {_derived(token, b'fedlora invitation id', size_bytes=8).hex()}")


def _derived(token: Token, purpose: bytes, *, size_bytes: int) -> bytes:
    return HKDF(hashes.SHA256(), length=size_bytes, salt=None, info=purpose).derive(token.secret)


def _load_certificate(pem: bytes) -> x509.Certificate:
    return _load("certificate", pem, x509.load_pem_x509_certificate)


def _load_requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    def load(raw: bytes) -> tuple[PublicKeyTypes, bool]:
        loaded = x509.load_pem_x509_csr(raw)
        return loaded.public_key(), loaded.is_signature_valid

    key, is_signed = _load("signing request", request, load)
    if not is_signed:
        raise ConfigError("a signing request that is not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("a signing request with another kind of key; expected one on P-256")
    return key


def _load_any_key(pem: bytes) -> PrivateKeyTypes:
    return _load("private key", pem, lambda raw: serialization.load_pem_private_key(raw, password=None))


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = _load_any_key(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"a private key of another kind ({type(key).__name__}); expected one on P-256")
    return key


def _load(kind: str, pem: bytes, load: Callable[[bytes], Loaded]) -> Loaded:
    try:
        return load(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: a key with a passphrase.
        raise ConfigError(f"no {kind} in PEM, or one with a passphrase ({error})") from error


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _der(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
