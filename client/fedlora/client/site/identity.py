"""Who a site is to the server: its key and certificate, and the authority and the name by which it knows the server.

All of it is one file in the site's folder, `identity-AUTHORITY.json` (mode 0600), so that a crash while a certificate
is renewed leaves the old pair or the new one. A site that takes part in the runs of several servers has one for each.
"""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedlora.common import certificates
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.files import write_private_file
from fedlora.common.open_files import require_descriptors


@dataclass(frozen=True)
class SiteIdentity:
    """A site's key and certificate, and its server's authority, all PEM.

    `server_name` is the name in the server's certificate; empty where that names its host. `address` is where the
    server was when the certificate was made, `token_sha256` of the invitation that it was made for.
    """

    key_pem: bytes = field(repr=False)
    certificate_pem: bytes
    ca_pem: bytes
    server_name: str = certificates.SERVER_NAME
    address: str = ""
    token_sha256: str = ""

    @staticmethod
    def exists(folder: Path) -> bool:
        """Return whether a site's folder holds an identity."""
        return bool(identity_files(folder))

    @classmethod
    def load(cls, folder: Path, address: str = "") -> "SiteIdentity":
        """Return the identity in a site's folder, of several the one for the server at `address`.

        Its certificate may have expired: look at `expiry`.

        Raises:
            StoreError: there is none, it is damaged, or none of several is for that server.
        """
        files = identity_files(folder)
        if not files:
            raise StoreError(f"{folder}: no identity; enrol the site with the token of its invitation")
        if len(files) == 1:
            return cls.read(files[0])
        # One that is damaged says nothing of where its server is.
        found, damaged = cls.found_in(folder)
        if not found or (damaged and address not in {identity.address for identity in found}):
            raise StoreError(damaged[0])
        chosen = next((identity for identity in found if identity.address == address), None)
        if chosen is None:
            addresses = ", ".join(sorted(identity.address for identity in found))
            raise StoreError(
                f"{folder}: this site is enrolled with the servers at {addresses}, and {address or 'no address'} is "
                "none of these; give the address as it was at the enrolment, or the token of a new invitation"
            )
        return chosen

    @classmethod
    def found_in(cls, folder: Path) -> tuple[list["SiteIdentity"], list[str]]:
        """Return the identities in a site's folder, and in a line each what is wrong with those that are damaged."""
        found, damaged = [], []
        for path in identity_files(folder):
            try:
                found.append(cls.read(path))
            except StoreError as error:
                damaged.append(str(error))
        return found, damaged

    @classmethod
    def read(cls, path: Path) -> "SiteIdentity":
        """Return the identity in a file.

        Raises:
            StoreError: it is damaged, or cannot be read.
        """
        try:
            identity = _IDENTITY.validate_json(path.read_bytes())
            certificates.check_fits(identity.key_pem, identity.certificate_pem)
            certificates.fingerprint_of(identity.ca_pem)
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValidationError, ConfigError) as error:
            # A validation error shows what it found, which is the key.
            reason = error if isinstance(error, ConfigError) else f"{error.error_count()} fields are wrong"
            raise StoreError(f"{path} is damaged ({reason}); enrol the site with a new invitation") from None
        return identity

    @classmethod
    def external(cls, ca: Path, certificate: Path, key: Path, *, now: datetime) -> "SiteIdentity":
        """Return the identity in files of the site's own authority; the server's certificate then names its host.

        Raises:
            ConfigError: a file is missing or damaged, the key is not the certificate's, or that has expired.
        """
        identity = cls(_read(key), _read(certificate), _read(ca), server_name="")
        try:
            certificates.check_not_expired(identity.ca_pem, now)
        except ConfigError as error:
            raise ConfigError(f"{ca}: {error}") from error
        try:
            certificates.check_not_expired(identity.certificate_pem, now)
            certificates.check_fits(identity.key_pem, identity.certificate_pem)
        except ConfigError as error:
            raise ConfigError(f"{certificate} with {key}: {error}") from error
        return identity

    def save(self, folder: Path) -> None:
        """Write the identity to a site's folder, in place of a former one of the same authority.

        Raises:
            StoreError: the folder cannot be written; a former identity is as it was.
        """
        content = _IDENTITY.dump_json(self, indent=2)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{folder}: cannot be used ({error.strerror})") from error
        name = f"identity-{certificates.fingerprint_of(self.ca_pem).hex()[:16]}.json"
        write_private_file(folder / name, content)

    def pair(self) -> tuple[bytes, bytes]:
        """Return key and certificate."""
        return self.key_pem, self.certificate_pem

    @property
    def name(self) -> str:
        """The site's name, as its certificate has it."""
        return certificates.common_name(self.certificate_pem)

    @property
    def expiry(self) -> datetime:
        """When the certificate ends, in UTC."""
        return certificates.expiry(self.certificate_pem)

    def needs_renewal(self, now: datetime) -> bool:
        """Return whether less than a third of the certificate's life is left."""
        return certificates.needs_renewal(self.certificate_pem, now)


_IDENTITY = TypeAdapter(SiteIdentity)


def identity_files(folder: Path) -> list[Path]:
    """Return the files of a site's identities, one for each authority that it has enrolled with."""
    return sorted(folder.glob("identity-*.json"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        require_descriptors(error)
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a file in PEM") from error
