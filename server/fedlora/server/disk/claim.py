"""Whose folder it is: a new run's, the run's that is to be resumed, or somebody else's. Needs no torch."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fedlora.common.config import RunConfig
from fedlora.common.errors import FedloraError, StoreError
from fedlora.common.files import TEMPORARY_SUFFIX, write_file
from fedlora.common.folder_version import RUN_FOLDER, VERSION_FILE, bring_up_to_date, version_of
from fedlora.common.locks import hold
from fedlora.common.open_files import require_descriptors
from fedlora.common.run_file import load_run, to_toml
from fedlora.common.run_folder import (
    AUDIT_FILE,
    EXCHANGE_FOLDER,
    IDENTITY_FOLDER,
    LOCK_FILE,
    MANIFEST_FILE,
    RUN_FILE,
    SITES_FILE,
    STATUS_FILE,
    STOP_FILE,
)
from fedlora.server.disk.prolonging import changes


class Claim:
    """A folder held by this process for one run. At its end another process may have it.

    A run that ended in an error before its manifest was written has begun nothing: its folder is given back as it was.

    Attributes:
        is_new: whether the folder held no run.
        notes: what a run that goes on does from here on otherwise than before, in a line each.
    """

    def __init__(self, path: Path, config: RunConfig, *, resume: bool) -> None:
        """Check and lock the folder at `path`, which is made if need be, and write its run.toml if that is new.

        Raises:
            StoreError: it holds something else, a run where a new one was to start, a run that differs, or is in use.
        """
        self.path = path
        try:
            self._existed = path.exists()
            self.is_new = _is_free(path, resume=resume)
            version_of(path, RUN_FOLDER)  # A newer one is not even locked.
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / LOCK_FILE, "wb")  # noqa: SIM115 (held until the end)
        except OSError as error:
            require_descriptors(error)
            raise StoreError(f"{path}: cannot be used ({error.strerror}); choose another folder with --out") from error
        try:
            hold(self._lock)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreError(
                f"{path} is in use by another process; wait for its end, or choose another folder"
            ) from error
        # It asked a former holder.
        (path / STOP_FILE).unlink(missing_ok=True)
        try:
            self.notes = self._written(config)
        except FedloraError:
            if self.is_new:
                self._give_back()
            self._lock.close()
            raise

    def _written(self, config: RunConfig) -> tuple[str, ...]:
        """Have the folder in today's form, with the run in it, and return what is done otherwise than before."""
        migrated = bring_up_to_date(self.path, RUN_FOLDER, is_new=self.is_new)
        changed = () if self.is_new else changes(self.path, load_run(self.path / RUN_FILE), config)
        if self.is_new or changed:
            write_file(self.path / RUN_FILE, to_toml(config))
        return (*migrated, *changed)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not (self.path / MANIFEST_FILE).exists():
            self._give_back()
        self._lock.close()

    def _give_back(self) -> None:
        (self.path / RUN_FILE).unlink(missing_ok=True)
        (self.path / SITES_FILE).unlink(missing_ok=True)
        (self.path / VERSION_FILE).unlink(missing_ok=True)
        (self.path / LOCK_FILE).unlink(missing_ok=True)
        if not self._existed:
            with suppress(OSError):  # Somebody else put something there.
                self.path.rmdir()
        self._lock.close()


def _is_free(path: Path, *, resume: bool) -> bool:
    """Return whether `path` holds no run.

    Raises:
        StoreError: it holds other files, or a run and `resume` is not asked for.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; expected a folder for the run")
    if not (path / RUN_FILE).is_file():
        # A killed run may have left these, or a server that ended while it waited for its sites, which it may have let
        # in already.
        ours = (RUN_FILE, LOCK_FILE, IDENTITY_FOLDER, EXCHANGE_FOLDER, STATUS_FILE, STOP_FILE, AUDIT_FILE, VERSION_FILE)
        if path.is_dir() and any(entry.name.removesuffix(TEMPORARY_SUFFIX) not in ours for entry in path.iterdir()):
            raise StoreError(f"{path} is not empty and holds no run; choose another folder with --out")
        return True
    if not resume:
        raise StoreError(f"{path} holds a run; continue it with --resume, or choose another folder with --out")
    return False
