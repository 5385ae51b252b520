"""Who may take part: the server's own authority, or an external one, and a record for each site.

    DIR/identity/             folder 0700, keys 0600
        ca.key, ca.pem        the authority that signs the sites' certificates; none where it is external. The key
                              stays, its certificate is renewed in good time
        server.key, server.pem
        sites/                what is known of each site, see `site_records`

The command line changes the records while a server runs: every question is answered from the disk, and a file that has
not changed is not read again. Changes of both are one after the other, under a lock.
"""

import dataclasses
import fcntl
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from fedlora.common import certificates
from fedlora.common.errors import ConfigError, FedloraError, StoreError
from fedlora.common.files import write_file, write_private_file
from fedlora.common.folder_version import AUTHORITY_FOLDER, bring_up_to_date, version_of
from fedlora.common.open_files import require_descriptors
from fedlora.server.identity.site_records import SiteRecord, SiteRecords, with_certificate

logger = logging.getLogger(__name__)

_LOCK_FILE = ".lock"
_CERTIFICATE_FILE = "ca.pem"

AccessCode = Literal[
    "unknown_site", "revoked", "expired", "other_run", "not_a_site", "not_invited", "bad_request", "external"
]


class AccessRefused(FedloraError):  # noqa: N818 (what happened, as gRPC's own codes say it)
    """What a caller may not do, and why: `code` is what it is told."""

    def __init__(self, code: AccessCode, message: str) -> None:
        super().__init__(message)
        self.code: AccessCode = code


class Authority:
    """Invites sites, signs their certificates, and says who may use a run.

    Made by `open`, or by `external` for people with an authority of their own: that one's certificates count by their
    common name, `allow` takes the place of an invitation, and nothing is signed here.
    """

    def __init__(self, folder: Path, ca_pem: bytes, ca_key: bytes | None) -> None:
        self.ca_pem = ca_pem
        self._ca_key = ca_key
        self._folder = folder
        self._records = SiteRecords(folder / "sites")

    @classmethod
    def open(cls, folder: Path, now: datetime) -> "Authority":
        """Return the authority in `folder`, made if there is none.

        Raises:
            StoreError: the folder cannot be used, or its key or certificate is missing or damaged.
        """
        key_path, certificate_path = folder / "ca.key", folder / _CERTIFICATE_FILE
        with _locked(folder):
            if not certificate_path.exists() and not key_path.exists():
                write_private_file(key_path, certificates.generate_key())
            key = _read(key_path)
            try:
                if not certificate_path.exists():
                    write_file(certificate_path, certificates.authority_certificate(key, now=now))
                certificate = _renewed_in_time(folder, key, now)
            except ConfigError as error:
                raise StoreError(f"{folder}: ca.key and ca.pem cannot be used ({error}); restore them") from error
        return cls(folder, certificate, key)

    @classmethod
    def kept(cls, folder: Path, now: datetime) -> "Authority":
        """Return whichever authority the records in `folder` are of; nothing is made.

        Raises:
            StoreError: there is no such folder, it cannot be used, or its key or certificate is missing or damaged.
        """
        if not folder.is_dir():
            raise StoreError(f"{folder}: there is no server's identity; start the server first")
        version_of(folder, AUTHORITY_FOLDER)
        if (folder / "ca.key").exists() or (folder / _CERTIFICATE_FILE).exists():
            return cls.open(folder, now)
        return cls(folder, b"", None)

    @classmethod
    def external(cls, folder: Path, ca_pem: bytes) -> "Authority":
        """Return the records in `folder` with an external authority, which alone is trusted.

        Raises:
            ConfigError: `ca_pem` is no certificate.
            StoreError: the folder cannot be used.
        """
        certificates.fingerprint_of(ca_pem)
        with _locked(folder):
            return cls(folder, ca_pem, None)

    @property
    def is_external(self) -> bool:
        """Whether somebody else signs the certificates, the server's too."""
        return self._ca_key is None

    def renew_authority(self, now: datetime) -> datetime:
        """Give the authority a new certificate for its key, and return when that ends.

        What it has signed stays good, and so do the tokens given out: whoever has its former certificate knows its key
        until that ends, and a site gets the new one with its own next certificate.

        Raises:
            AccessRefused: external; the authority is external.
            StoreError: the folder cannot be written.
        """
        key, _ = self._signer()
        with _locked(self._folder):
            self.ca_pem = certificates.authority_certificate(key, now=now)
            write_file(self._folder / _CERTIFICATE_FILE, self.ca_pem)
        return certificates.expiry(self.ca_pem)

    def server_pair(self, now: datetime) -> tuple[bytes, bytes]:
        """Return the server's key, and its certificate followed by the authority's; renewed in good time.

        Raises:
            AccessRefused: external; the authority is external.
            StoreError: the folder cannot be used.
        """
        authority_key, _ = self._signer()
        key_path, certificate_path = self._folder / "server.key", self._folder / "server.pem"
        with _locked(self._folder):
            # The command line may have renewed it.
            self.ca_pem = _renewed_in_time(self._folder, authority_key, now)
            if certificate_path.exists() and key_path.exists():
                key, certificate = _read(key_path), _read(certificate_path)
                if _is_good(key, certificate, self.ca_pem, now):
                    return key, certificate + self.ca_pem
            key = certificates.generate_key()
            certificate = certificates.server_certificate(key, authority=(authority_key, self.ca_pem), now=now)
            write_private_file(key_path, key)
            write_file(certificate_path, certificate)
        return key, certificate + self.ca_pem

    def trusted_roots(self, now: datetime) -> bytes:
        """Return whom a connecting site's certificate may come from: the authority, and the open invitations."""
        return b"".join([self.ca_pem, *self.pending_roots(now)])

    def pending_roots(self, now: datetime) -> list[bytes]:
        """Return the roots of the open invitations."""
        return [record.invitation.encode() for record in self.sites() if record.is_pending(now)]

    def invite(self, name: str, runs: Sequence[str], valid_for: timedelta, now: datetime) -> str:
        """Return the token of a new invitation to some runs; a former invitation to the same name ends.

        The certificate of a site that is enrolled already is good until the new enrolment replaces it, and the runs
        that it may use stay.

        Raises:
            ConfigError: the name will not do.
            AccessRefused: external; the authority is external.
            StoreError: the folder cannot be written.
        """
        certificates.check_site_name(name)
        self._signer()
        token = certificates.new_token(self.ca_pem)
        expires = (now + valid_for).replace(microsecond=0)
        root = certificates.invitation_root(certificates.parse_token(token), expires, now=now).decode()
        with self._changing(name) as (former, write):
            kept = (former.certificates or ()) if former is not None else ()
            write(SiteRecord(name, _with_former_runs(former, runs), "invited", kept, root, expires))
        logger.info("Invited %s until %s", name, expires)
        return token

    def allow(self, name: str, runs: Sequence[str]) -> None:
        """Let the bearer of any certificate of the external authority with this common name use some runs more.

        Raises:
            ConfigError: the name will not do, or the authority is not external.
            StoreError: the folder cannot be written.
        """
        certificates.check_site_name(name)
        if not self.is_external:
            raise ConfigError(f"{name}: only an external authority's sites need no invitation; invite it")
        with self._changing(name) as (former, write):
            write(SiteRecord(name, _with_former_runs(former, runs), "enrolled", None))

    def revoke(self, name: str) -> None:
        """End a site's certificates and its invitation.

        Raises:
            StoreError: there is no such site, or the folder cannot be written.
        """
        with self._changing(name) as (record, write):
            if record is None:
                raise StoreError(f"there is no site {name!r} in {self._folder}; look at the names with fedlora sites")
            write(SiteRecord(name, record.runs, "revoked"))
        logger.info("Revoked %s", name)

    def sites(self) -> list[SiteRecord]:
        """Return all records by name. A damaged one is said and left out."""
        return self._records.all()

    def runs_of(self, name: str) -> tuple[str, ...]:
        """Return the runs that a site may use, none where there is no such site.

        Raises:
            StoreError: its record is damaged.
        """
        record = self._records.get(name)
        return () if record is None else record.runs

    def invited_site(self, peer: bytes, now: datetime) -> SiteRecord | None:
        """Return the record whose open invitation a certificate was made from, or None."""
        pending = (record for record in self.sites() if record.is_pending(now))
        return next((found for found in pending if certificates.is_issued_by(peer, found.invitation.encode())), None)

    def enrol(self, name: str, request: bytes, now: datetime) -> bytes:
        """Return the certificate of an invited site, in place of those it had. The invitation is used up by this.

        For ten minutes the same key may ask again, and get one more.

        Raises:
            AccessRefused: not_invited, bad_request, external.
            StoreError: the folder cannot be written.
        """
        with self._changing(name) as (record, write):
            if record is None or not record.is_pending(now):
                raise AccessRefused("not_invited", f"{name}: there is no open invitation; ask for a new one")
            certificate, key = self._signed(name, request, now)
            if record.enrolled_key not in ("", key):
                raise AccessRefused("not_invited", f"{name}: the invitation was taken up with another key")
            kept = (record.certificates or ()) if record.enrolled_key else ()
            write(
                dataclasses.replace(
                    record,
                    status="enrolled",
                    certificates=with_certificate(kept, certificate, now),
                    enrolled_key=key,
                    enrolled_at=record.enrolled_at or now,
                )
            )
        logger.info("Enrolled %s", name)
        return certificate

    def renew(self, name: str, request: bytes, now: datetime) -> bytes:
        """Return one more certificate of an enrolled site, whose caller was found to be it. Those it had stay good.

        Raises:
            AccessRefused: unknown_site, revoked, bad_request, external.
            StoreError: the folder cannot be written.
        """
        with self._changing(name) as (record, write):
            if record is None:
                raise AccessRefused("unknown_site", f"{name}: there is no such site")
            certificate, _ = self._signed(name, request, now)
            if not record.certificates:
                raise AccessRefused("revoked", f"{name}: it has no certificate to renew")
            kept = record if record.is_pending(now) else SiteRecord(name, record.runs, "enrolled")
            write(dataclasses.replace(kept, certificates=with_certificate(record.certificates, certificate, now)))
        logger.info("Renewed the certificate of %s", name)
        return certificate

    def allowed(self, peer: bytes, run: str | None, now: datetime) -> str:
        """Return the name of the site whose certificate this is, which may use `run`; None asks for no run.

        The connection has shown that the caller has the certificate's key, and that it comes from `trusted_roots`.

        Raises:
            AccessRefused: not_a_site, unknown_site, revoked, expired, other_run.
            StoreError: the site's record is damaged.
        """
        try:
            name, serial = certificates.common_name(peer), certificates.serial(peer)
            end = certificates.expiry(peer)
        except ConfigError as error:
            raise AccessRefused("not_a_site", str(error)) from error
        # An invitation's root is trusted too, and could name anybody. An external authority may sign through others.
        if not self.is_external and not certificates.is_issued_by(peer, self.ca_pem):
            raise AccessRefused("not_a_site", f"{name!r}: the certificate is not signed by this server's authority")
        record = self._records.get(name)
        if record is None:
            raise AccessRefused("unknown_site", f"{name!r}: there is no such site")
        known = None if record.certificates is None else {certificate.serial for certificate in record.certificates}
        if record.status == "revoked" or (known is not None and serial not in known):
            raise AccessRefused("revoked", f"{name}: the certificate was revoked, or replaced by a new enrolment")
        if end <= now:
            raise AccessRefused("expired", f"{name}: the certificate expired on {end:%Y-%m-%d %H:%M} UTC")
        if run is not None and not record.may_use(run):
            raise AccessRefused("other_run", f"{name}: may not use {run}; it is invited to {', '.join(record.runs)}")
        return name

    def _signer(self) -> tuple[bytes, bytes]:
        if self._ca_key is None:
            raise AccessRefused("external", "the authority is external; have it sign the certificate")
        return self._ca_key, self.ca_pem

    def _signed(self, name: str, request: bytes, now: datetime) -> tuple[bytes, str]:
        """Return a new certificate, and the sha256 of its public key, hex."""
        signer = self._signer()
        try:
            key = hashlib.sha256(certificates.requested_key(request)).hexdigest()
            return certificates.site_certificate(request, name, authority=signer, now=now), key
        except ConfigError as error:
            raise AccessRefused("bad_request", f"{name}: {error}") from error

    @contextmanager
    def _changing(self, name: str) -> Iterator[tuple[SiteRecord | None, Callable[[SiteRecord], None]]]:
        """Return a site's record and what writes it, while nobody else changes any."""
        with _locked(self._folder):
            yield self._records.get(name), self._records.write


def _with_former_runs(former: SiteRecord | None, runs: Sequence[str]) -> tuple[str, ...]:
    """Return the runs, after those that a site which has a good certificate may use already."""
    is_enrolled = former is not None and former.status != "revoked" and former.certificates != ()
    return tuple(dict.fromkeys([*(former.runs if former is not None and is_enrolled else ()), *runs]))


def _renewed_in_time(folder: Path, key: bytes, now: datetime) -> bytes:
    """Return the certificate of a folder's authority, which has this key; a new one where the former will not do.

    Raises:
        StoreError: it is damaged, is another key's, or cannot be read or written.
    """
    certificate = _read(folder / _CERTIFICATE_FILE)
    try:
        certificates.check_fits(key, certificate)
    except ConfigError as error:
        raise StoreError(f"{folder}: ca.key and ca.pem cannot be used ({error}); restore them") from error
    if _is_to_be_replaced(certificate, now):
        certificate = certificates.authority_certificate(key, now=now)
        write_file(folder / _CERTIFICATE_FILE, certificate)
        logger.info("Renewed the authority; it is good until %s", f"{certificates.expiry(certificate):%Y-%m-%d}")
    return certificate


def _is_good(key: bytes, certificate: bytes, authority: bytes, now: datetime) -> bool:
    try:
        certificates.check_fits(key, certificate)
    except ConfigError:
        return False
    return certificates.is_issued_by(certificate, authority) and not _is_to_be_replaced(certificate, now)


def _is_to_be_replaced(certificate: bytes, now: datetime) -> bool:
    """Return whether a certificate nears its end, or was made when the clock here was ahead and has not begun."""
    return certificates.needs_renewal(certificate, now) or certificates.beginning(certificate) > now


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes and threads.

    Raises:
        StoreError: it cannot be used, or is of a newer version.
    """
    version_of(folder, AUTHORITY_FOLDER)  # A newer one is not even locked.
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
        lock = open(folder / _LOCK_FILE, "wb")  # noqa: SIM115 (closed below)
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"{folder}: cannot be used ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_new = all(path.name == _LOCK_FILE for path in folder.iterdir())
        for line in bring_up_to_date(folder, AUTHORITY_FOLDER, is_new=is_new):
            logger.info("%s", line)
        yield


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"{path}: cannot be read ({error.strerror}); restore it") from error
