"""Who signs a site's keys for secure sums, and how it knows the others', whom it never meets but through the server.

A site has a signing key of its own, made at its first sum and kept in its folder. Its certificate's key signs that, so
that a server whose sites' certificates are of an authority of their own cannot give out keys of its making. And the
first signing key that a site has seen of another is the one that it believes from then on: so a server that issues
certificates itself cannot either, once the sites have met.
"""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlora.client.site.credentials import identity_from
from fedlora.client.site.identity import SiteIdentity
from fedlora.client.worker.sums.signer import Signer, SumsRefused, is_signed_by
from fedlora.common import certificates
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.files import write_file, write_private_file
from fedlora.common.parsing import json_in
from fedlora.common.pem_files import PemFiles

logger = logging.getLogger(__name__)

PEERS_FILE = "peers.json"
_KEY_FILE = "sums.key"
_KEY_BYTES = 32
_PURPOSE = b"fedlora: signs for secure sums: "
_WITHOUT = "without certificates"


@dataclass(frozen=True)
class SiteSigners:
    """The signer of a site's one client, as a worker process makes it.

    Attributes:
        folder: the site's.
        address: of the server.
        files: of an authority of its own, in place of an enrolment.
        is_insecure: whether there are no certificates.
    """

    folder: Path
    address: str
    files: PemFiles | None = None
    is_insecure: bool = False

    def __call__(self, client: str) -> Signer:
        identity = None
        if not self.is_insecure:
            identity = identity_from(self.files) if self.files else SiteIdentity.load(self.folder, self.address)
        return _SiteSigner(self.folder, client, identity)


class _SiteSigner:
    """A site's signing key, and the keys that it knows others by."""

    def __init__(self, folder: Path, name: str, identity: SiteIdentity | None) -> None:
        self._folder = folder
        self._name = name
        self._identity = identity
        self._key = _own_key(folder)

    def identity(self) -> bytes:
        """Return the public key, its certificate's signature under it with the length before, and the certificate."""
        public = self._key.public_key().public_bytes_raw()
        if self._identity is None:
            return public
        signature = certificates.signed(self._identity.key_pem, _certified(self._name, public))
        return public + len(signature).to_bytes(2, "big") + signature + self._identity.certificate_pem

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def is_signed(self, message: bytes, signature: bytes, *, identity: bytes) -> bool:
        return is_signed_by(identity[:_KEY_BYTES], message, signature)

    def require_known(self, name: str, identity: bytes) -> None:
        if name == self._name:
            return
        public, rest = identity[:_KEY_BYTES], identity[_KEY_BYTES:]
        if self._identity is not None:
            self._require_certified(name, public, rest, self._identity)
        self._require_as_before(name, public.hex())

    def _require_certified(self, name: str, public: bytes, rest: bytes, own: SiteIdentity) -> None:
        size = int.from_bytes(rest[:2], "big")
        signature, certificate = rest[2 : 2 + size], rest[2 + size :]
        try:
            certified_name = certificates.common_name(certificate)
            certificates.check_not_expired(certificate, datetime.now(UTC))
        except ConfigError as error:
            raise SumsRefused(f"{name} has no certificate that is good: {error}") from error
        if certified_name != name or not certificates.is_issued_by(certificate, own.ca_pem):
            raise SumsRefused(f"the certificate of {name} is for {certified_name!r}, or of another authority")
        if not certificates.is_signed_by(certificate, _certified(name, public), signature):
            raise SumsRefused(f"the signing key of {name} is not signed by its certificate")

    def _require_as_before(self, name: str, public: str) -> None:
        path = self._folder / PEERS_FILE
        known = _peers(path)
        authority = certificates.fingerprint_of(self._identity.ca_pem).hex() if self._identity else _WITHOUT
        peers = known.setdefault(authority, {})
        if name not in peers:
            logger.warning(
                "secure sums with %s, whom this site sees for the first time: its key is %s from here on", name, public
            )
            peers[name] = public
            write_file(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
        elif peers[name] != public:
            raise SumsRefused(
                f"{name} signs with another key than before; if you know that this site was set up anew, take its line "
                f"out of {path}"
            )


def _peers(path: Path) -> dict[str, dict[str, str]]:
    try:
        known = json_in(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged, by which the site knows others; restore it") from error
    if not isinstance(known, dict) or not all(isinstance(peers, dict) for peers in known.values()):
        raise StoreError(f"{path} is damaged, by which the site knows others; restore it")
    return known


def _own_key(folder: Path) -> Ed25519PrivateKey:
    """Return a site's signing key, which is made at its first use.

    Raises:
        StoreError: it is damaged, or cannot be written.
    """
    path = folder / _KEY_FILE
    if not path.is_file():
        write_private_file(path, Ed25519PrivateKey.generate().private_bytes_raw())
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged, with which the site signs for secure sums; restore it") from error


def _certified(name: str, public: bytes) -> bytes:
    return _PURPOSE + public + name.encode()
