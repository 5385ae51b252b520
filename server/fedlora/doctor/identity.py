"""The certificates of a site, or of a server's folder: are they there, whose are they, how long are they good."""

import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedlora.client.site.identity import SiteIdentity, identity_files
from fedlora.common import certificates
from fedlora.common.errors import ConfigError, StoreError
from fedlora.common.run_folder import IDENTITY_FOLDER
from fedlora.doctor.finding import Finding, ok, problem, warning
from fedlora.doctor.subject import Subject

_INVITE = (
    "at the server: fedlora sites invite {name} --out DIR; here: fedlora client join HOST:PORT --site {path} --token -"
)


def site_certificate(subject: Subject) -> Iterator[Finding]:
    """Find out whether a site has a good certificate for its own name."""
    if subject.site is None or subject.state is None:
        return
    name, remedy = subject.site.site.name, _INVITE.format(name=subject.site.site.name, path=subject.path)
    files = identity_files(subject.state)
    if not files:
        yield warning("certificate", f"{name} has not enrolled: no identity in {subject.state}", remedy)
    for path in files:
        try:
            identity = SiteIdentity.read(path)
        except StoreError as error:
            yield problem("certificate", str(error), remedy)
            continue
        if identity.name != name:
            found = f"{path} is of {identity.name!r}, and the site file names {name!r}"
            yield problem("certificate", found, remedy)
        whose = f"of {identity.name}" + (f" for {identity.address}" if identity.address else "")
        yield _validity(identity.certificate_pem, identity.ca_pem, whose, remedy)
        yield from _secrecy(path)


def server_certificates(subject: Subject) -> Iterator[Finding]:
    """Find out whether a server's folder has its authority, and a certificate from it."""
    if subject.folder is None:
        return
    folder = subject.folder / IDENTITY_FOLDER
    start = f"fedlora server start {subject.folder / 'run.toml'} --out {subject.folder}"
    if not folder.is_dir():
        yield ok("certificate", f"no {folder}: made when the server starts with certificates of its own")
        return
    try:
        authority = (folder / "ca.pem").read_bytes()
        certificates.check_not_expired(authority, datetime.now(UTC))
        certificates.check_fits((folder / "ca.key").read_bytes(), authority)
    except (OSError, ConfigError) as error:
        found = f"{folder}: ca.key and ca.pem cannot be used ({error})"
        yield problem("certificate", found, f"restore {folder} from a copy, or remove it and invite all sites anew")
        return
    if (folder / "server.pem").is_file():
        yield _validity((folder / "server.pem").read_bytes(), authority, "of the server", start)
    for name in ("ca.key", "server.key"):
        yield from _secrecy(folder / name)


def _validity(certificate: bytes, authority: bytes, whose: str, remedy: str) -> Finding:
    now, end = datetime.now(UTC), certificates.expiry(certificate)
    if not certificates.is_issued_by(certificate, authority):
        return problem("certificate", f"the one {whose} is not signed by the authority beside it", remedy)
    if (begin := certificates.beginning(certificate)) > now:
        return problem("certificate", f"the one {whose} begins on {begin:%Y-%m-%d %H:%M} UTC only", remedy)
    if end <= now:
        return problem("certificate", f"the one {whose} expired on {end:%Y-%m-%d %H:%M} UTC", remedy)
    found = f"the one {whose} is good until {end:%Y-%m-%d}, signed by {certificates.common_name(authority)!r}"
    if certificates.needs_renewal(certificate, now):
        return warning("certificate", f"{found}; a connection to the server renews it")
    return ok("certificate", found)


def _secrecy(path: Path) -> Iterator[Finding]:
    if path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield problem("certificate", f"{path} holds a private key, and others may read it", f"chmod 600 {path}")
