"""Whose folder it is: a new run's, the run's that is to be resumed, or somebody else's. Needs no torch."""

import fcntl
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fedlora.common.config import RunConfig
from fedlora.common.errors import StoreError
from fedlora.common.files import TEMPORARY_SUFFIX, write_file
from fedlora.common.run_file import differences, load_run, to_toml
from fedlora.common.run_folder import (
    AUDIT_FILE,
    EXCHANGE_FOLDER,
    IDENTITY_FOLDER,
    LOCK_FILE,
    MANIFEST_FILE,
    RUN_FILE,
    SITES_FILE,
    STATUS_FILE,
)


class Claim:
    """A folder held by this process for one run. At its end another process may have it.

    A run that ended in an error before its manifest was written has begun nothing: its folder is given back as it was.
    """

    def __init__(self, path: Path, config: RunConfig, *, resume: bool) -> None:
        """Check and lock the folder at `path`, which is made if need be, and write its run.toml if it is new.

        Raises:
            StoreError: it holds something else, a run where a new one was to start, a run that differs, or is in use.
        """
        self.path = path
        try:
            self._existed = path.exists()
            self.is_new = not _holds(path, config, resume=resume)
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / LOCK_FILE, "wb")  # noqa: SIM115 (held until the end)
        except OSError as error:
            raise StoreError(f"{path}: cannot be used ({error.strerror}); choose another folder with --out") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreError(
                f"{path} is in use by another process; wait for its end, or choose another folder"
            ) from error
        if self.is_new:
            try:
                write_file(path / RUN_FILE, to_toml(config))
            except StoreError:
                self._give_back()
                raise

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
        (self.path / LOCK_FILE).unlink(missing_ok=True)
        if not self._existed:
            with suppress(OSError):  # Somebody else put something there.
                self.path.rmdir()
        self._lock.close()


def _holds(path: Path, config: RunConfig, *, resume: bool) -> bool:
    """Return whether `path` holds this run already; False for a folder that is free.

    Raises:
        StoreError: it holds another run or other files, or the run and `resume` is not asked for.
    """
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; expected a folder for the run")
    if not (path / RUN_FILE).is_file():
        # A killed run may have left these, or a server that ended while it waited for its sites, which it may have let
        # in already.
        ours = (LOCK_FILE, f"{RUN_FILE}{TEMPORARY_SUFFIX}", IDENTITY_FOLDER, EXCHANGE_FOLDER, STATUS_FILE, AUDIT_FILE)
        if path.is_dir() and any(entry.name not in ours for entry in path.iterdir()):
            raise StoreError(f"{path} is not empty and holds no run; choose another folder with --out")
        return False
    if not resume:
        raise StoreError(f"{path} holds a run; continue it with --resume, or choose another folder with --out")
    if changed := differences(load_run(path / RUN_FILE), config):
        raise StoreError(f"{path} holds a run that differs from this one: {'; '.join(changed)}")
    return True
