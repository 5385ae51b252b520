"""Who a site is to the server, in its folder or in files of its own."""

import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from fedlora.client.site.identity import SiteIdentity, identity_files
from fedlora.common import certificates
from fedlora.common.errors import ConfigError, StoreError

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> tuple[bytes, bytes]:
    key = certificates.generate_key()
    return key, certificates.authority_certificate(key, now=NOW)


@pytest.fixture
def identity(authority: tuple[bytes, bytes]) -> SiteIdentity:
    return new_identity(authority)


def new_identity(authority: tuple[bytes, bytes]) -> SiteIdentity:
    key = certificates.generate_key()
    request = certificates.signing_request(key, "north")
    return SiteIdentity(
        key, certificates.site_certificate(request, "north", authority=authority, now=NOW), authority[1]
    )


def files(identity: SiteIdentity, folder: Path) -> tuple[Path, Path, Path]:
    """Write ca, certificate and key, as people with their own authority have them."""
    paths = folder / "ca.pem", folder / "site.pem", folder / "site.key"
    for path, content in zip(paths, (identity.ca_pem, identity.certificate_pem, identity.key_pem), strict=True):
        path.write_bytes(content)
    return paths


def test_an_identity_that_was_saved_is_loaded(identity: SiteIdentity, tmp_path: Path) -> None:
    folder = tmp_path / "north.site"
    assert not SiteIdentity.exists(folder)
    identity.save(folder)
    assert SiteIdentity.exists(folder)
    loaded = SiteIdentity.load(folder)
    assert loaded == identity
    assert loaded.pair() == (identity.key_pem, identity.certificate_pem)
    assert loaded.server_name == certificates.SERVER_NAME
    assert loaded.name == "north"
    assert loaded.expiry == NOW + 90 * DAY


def test_the_key_is_for_its_owner_alone_and_is_not_shown(identity: SiteIdentity, tmp_path: Path) -> None:
    identity.save(tmp_path / "north.site")
    (path,) = identity_files(tmp_path / "north.site")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "north.site").stat().st_mode) == 0o700
    assert "PRIVATE" not in repr(identity)


def test_a_renewed_identity_takes_the_place_of_the_former(
    identity: SiteIdentity, authority: tuple[bytes, bytes], tmp_path: Path
) -> None:
    identity.save(tmp_path)
    newer = new_identity(authority)
    renewed = replace(identity, key_pem=newer.key_pem, certificate_pem=newer.certificate_pem)
    renewed.save(tmp_path)
    assert SiteIdentity.load(tmp_path) == renewed
    assert list(tmp_path.iterdir()) == identity_files(tmp_path)
    assert len(identity_files(tmp_path)) == 1


SAVE_FOR_EVER = """
import sys
from pathlib import Path
from fedlora.client.site.identity import SiteIdentity

one, two = (SiteIdentity.load(Path(name)) for name in sys.argv[1:3])
print("saving", flush=True)
while True:
    one.save(Path(sys.argv[3]))
    two.save(Path(sys.argv[3]))
"""


def test_a_process_that_is_killed_while_it_saves_leaves_a_pair_that_fits(
    identity: SiteIdentity, authority: tuple[bytes, bytes], tmp_path: Path
) -> None:
    both = identity, new_identity(authority)
    for saved, name in zip(both, "ab", strict=True):
        saved.save(tmp_path / name)
    identity.save(tmp_path / "c")
    command = [sys.executable, "-c", SAVE_FOR_EVER, *(str(tmp_path / name) for name in "abc")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert all(SiteIdentity.load(tmp_path / "c") in both for _ in range(200))
        os.kill(process.pid, signal.SIGKILL)
    assert SiteIdentity.load(tmp_path / "c") in both


def test_a_certificate_is_due_in_the_last_third_of_its_life(identity: SiteIdentity) -> None:
    assert not identity.needs_renewal(NOW + 59 * DAY)
    assert identity.needs_renewal(NOW + 60 * DAY)


def test_a_folder_without_identity_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no identity; enrol the site with the token"):
        SiteIdentity.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_said(identity: SiteIdentity, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"):
        identity.save(tmp_path / "file" / "north.site")


@pytest.mark.parametrize("damage", ["cut", "another key", "no certificate", "empty"])
def test_a_damaged_identity_is_said_without_its_key(
    identity: SiteIdentity, authority: tuple[bytes, bytes], tmp_path: Path, damage: str
) -> None:
    if damage == "another key":
        replace(identity, key_pem=new_identity(authority).key_pem).save(tmp_path)
    elif damage == "no certificate":
        replace(identity, certificate_pem=b"nothing").save(tmp_path)
    else:
        identity.save(tmp_path)
        (path,) = identity_files(tmp_path)
        path.write_bytes(path.read_bytes()[:300] if damage == "cut" else b"")
    with pytest.raises(StoreError, match=r"is damaged \(.*\); enrol the site with a new invitation") as refused:
        SiteIdentity.load(tmp_path)
    assert "PRIVATE" not in str(refused.value)


def test_files_of_an_authority_of_ones_own_are_taken(identity: SiteIdentity, tmp_path: Path) -> None:
    ca, certificate, key = files(identity, tmp_path)
    external = SiteIdentity.external(ca, certificate, key, now=NOW)
    assert external.pair() == identity.pair()
    assert external.ca_pem == identity.ca_pem
    assert external.server_name == ""


@pytest.mark.parametrize("name", ["ca.pem", "site.pem", "site.key"])
def test_a_file_that_is_missing_or_something_else_is_named(identity: SiteIdentity, tmp_path: Path, name: str) -> None:
    ca, certificate, key = files(identity, tmp_path)
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=rf"{name}.*: no .* in PEM"):
        SiteIdentity.external(ca, certificate, key, now=NOW)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: cannot be read \(No such file or directory\)"):
        SiteIdentity.external(ca, certificate, key, now=NOW)


def test_a_key_of_another_certificate_is_named(
    identity: SiteIdentity, authority: tuple[bytes, bytes], tmp_path: Path
) -> None:
    ca, certificate, key = files(replace(identity, key_pem=new_identity(authority).key_pem), tmp_path)
    with pytest.raises(ConfigError, match=r"site\.key: the key is not the one of the certificate for 'north'"):
        SiteIdentity.external(ca, certificate, key, now=NOW)


def test_a_key_with_a_passphrase_is_named(identity: SiteIdentity, tmp_path: Path) -> None:
    ca, certificate, key = files(identity, tmp_path)
    own = serialization.load_pem_private_key(identity.key_pem, None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(ConfigError, match=r"site\.key: .*passphrase"):
        SiteIdentity.external(ca, certificate, key, now=NOW)


def test_an_expired_certificate_is_named_with_its_end(identity: SiteIdentity, tmp_path: Path) -> None:
    ca, certificate, key = files(identity, tmp_path)
    with pytest.raises(ConfigError, match=r"site\.pem .*: the certificate for 'north' expired on 2027-05-30 12:00 UTC"):
        SiteIdentity.external(ca, certificate, key, now=NOW + 90 * DAY)
    with pytest.raises(ConfigError, match=r"ca\.pem: the certificate for 'fedlora authority .*' expired on 2037"):
        SiteIdentity.external(ca, certificate, key, now=NOW + 4000 * DAY)
