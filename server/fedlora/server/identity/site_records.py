"""What the server knows of each site, as a file: identity/sites/NAME-HASH.json."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from fedlora.common import certificates
from fedlora.common.errors import StoreError
from fedlora.common.files import client_file_name, write_file
from fedlora.common.open_files import require_descriptors

logger = logging.getLogger(__name__)

ANY_RUN = "*"
"""Among a site's runs: it may take part in every one of the server's."""

# A site whose enrolment was answered into a broken connection asks again.
_REPEAT = timedelta(minutes=10)
# Each renewal adds one for 90 days, and a lost answer costs one more.
_KEPT_CERTIFICATES = 32


@dataclass(frozen=True)
class SiteCertificate:
    """A certificate that was signed for a site: its serial number, hex, and its end."""

    serial: str
    not_after: datetime


@dataclass(frozen=True)
class SiteRecord:
    """What the server knows of a site.

    An invited site may still have certificates from before, which are good until the new enrolment replaces them.
    `certificates` is None where an external authority signs, and any of its certificates with this name is good.
    """

    name: str
    runs: tuple[str, ...]
    status: Literal["invited", "enrolled", "revoked"]
    certificates: tuple[SiteCertificate, ...] | None = ()
    invitation: str = ""
    invitation_expires: datetime | None = None
    # Who took up the invitation, as the public key's sha256, and when: the same key may ask again for a while.
    enrolled_key: str = ""
    enrolled_at: datetime | None = None

    def may_use(self, run: str) -> bool:
        """Return whether the site is invited to a run."""
        return run in self.runs or ANY_RUN in self.runs

    @property
    def not_after(self) -> datetime | None:
        """When the last of the certificates ends; None where there is none, or any is good."""
        return max((certificate.not_after for certificate in self.certificates or ()), default=None)

    def is_pending(self, now: datetime) -> bool:
        """Return whether the invitation can be taken up, or its enrolment be repeated."""
        if not self.invitation or self.invitation_expires is None or now >= self.invitation_expires:
            return False
        return self.enrolled_at is None or now < self.enrolled_at + _REPEAT


_RECORD = TypeAdapter(SiteRecord)


class SiteRecords:
    """The records in a folder, each read again when its file has changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, tuple[tuple[int, int, int], SiteRecord]] = {}

    def get(self, name: str) -> SiteRecord | None:
        """Return a site's record, None where there is no such site.

        Raises:
            StoreError: it is damaged.
        """
        return self._load(self._path(name))

    def all(self) -> list[SiteRecord]:
        """Return all records by name. A damaged one is said and left out."""
        records: list[SiteRecord] = []
        for path in self._folder.glob("*.json"):
            try:
                record = self._load(path)
            except StoreError as error:
                logger.warning("%s", error)
                continue
            if record is not None:
                records.append(record)
        return sorted(records, key=lambda record: record.name)

    def write(self, record: SiteRecord) -> None:
        """Write a site's record."""
        write_file(self._path(record.name), _RECORD.dump_json(record) + b"\n")

    def _path(self, name: str) -> Path:
        return self._folder / f"{client_file_name(name)}.json"

    def _load(self, path: Path) -> SiteRecord | None:
        try:
            status = path.stat()
            # Every write makes a new file, so that two within a tick of the clock still differ.
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            version_read, record = self._read.get(path, (None, None))
            if version_read != version or record is None:
                record = _RECORD.validate_json(path.read_bytes())
                self._read[path] = version, record
        except FileNotFoundError:
            return None
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise StoreError(f"{path} is damaged; remove it, and invite the site again") from error
        return record


def with_certificate(kept: Sequence[SiteCertificate], certificate: bytes, now: datetime) -> tuple[SiteCertificate, ...]:
    """Return the certificates that are not over yet, and the new one."""
    new = SiteCertificate(certificates.serial(certificate), certificates.expiry(certificate))
    return (*(former for former in kept if former.not_after > now), new)[-_KEPT_CERTIFICATES:]
