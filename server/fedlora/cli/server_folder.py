"""What the command line knows of a server by its folder, a run's or a store's: authority, address, audit log, run."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.cli.server_options import DEFAULT_PORT
from fedlora.common.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fedlora.server.disk.audit import Entry
    from fedlora.server.identity.authority import Authority


def authority_in(out: Path, identity: Path | None, ca: Path | None) -> "Authority":
    """Return the authority of a folder's server, or with `ca` one's own, over the records in that folder.

    Raises:
        FedloraError: there is none, or it cannot be used.
    """
    from fedlora.server.identity.authority import Authority

    require_known_version(out)
    folder = identity or _identity_of(out)
    if ca is not None:
        try:
            return Authority.external(folder, ca.read_bytes())
        except OSError as error:
            raise ConfigError(f"{ca}: cannot be read ({error.strerror}); expected a file in PEM") from error
    return Authority.kept(folder, datetime.now(UTC))


def require_known_version(out: Path) -> None:
    """Check that a folder is of no newer version, before anything of it is read or written.

    Raises:
        StoreError: it is, or is neither a run's nor a store's.
    """
    from fedlora.common.folder_version import RUN_FOLDER, STORE_FOLDER, version_of

    version_of(out, RUN_FOLDER, STORE_FOLDER)


def _identity_of(out: Path) -> Path:
    """Return where the authority of a folder's server lies, which may be elsewhere than in that folder."""
    from fedlora.server.disk.recorded_identity import identity_in

    return identity_in(out, _status_of(out).get("identity"))


def reached_at(out: Path) -> str:
    """Return the address of a folder's server as far as it is known, with HOST for one that listens everywhere."""
    host, _, port = str(_status_of(out).get("address") or "").rpartition(":")
    return f"{'HOST' if host in ('', '[::]', '0.0.0.0') else host}:{port or DEFAULT_PORT}"


def _status_of(out: Path) -> dict[str, object]:
    from fedlora.server.disk.status_reading import checked_status
    from fedlora.server.run_queue.store import RunStore, is_store

    if is_store(out):
        return RunStore(out).server()
    try:
        return checked_status(out)
    except StoreError:
        return {}  # Before the first start, or damaged: what is usual holds.


def note_in(out: Path, entry: "Entry") -> None:
    """Write an entry to the run's audit log."""
    from fedlora.server.disk.audit import AuditLog

    if out.is_dir():
        AuditLog(out).append(entry)


def run_in(out: Path) -> str:
    """Return the name of the run in a folder; of a store that of all its runs.

    Raises:
        StoreError: it holds neither.
    """
    from fedlora.common.run_file import load_run
    from fedlora.common.run_folder import RUN_FILE
    from fedlora.server.identity.site_records import ANY_RUN
    from fedlora.server.run_queue.store import is_store

    require_known_version(out)
    if is_store(out):
        return ANY_RUN
    if not (out / RUN_FILE).is_file():
        raise StoreError(f"{out} holds no run; start the server first, or name the run with --run")
    return load_run(out / RUN_FILE, aggregates_elsewhere=True).run.name
