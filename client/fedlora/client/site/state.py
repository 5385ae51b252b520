"""A site's folder: held by one client at a time, and where the operator's wishes are left for it."""

import logging
from pathlib import Path
from types import TracebackType
from typing import IO

from fedlora.common.errors import StoreError
from fedlora.common.files import write_file
from fedlora.common.folder_version import SITE_FOLDER, bring_up_to_date, version_of
from fedlora.common.locks import hold, is_held
from fedlora.common.open_files import require_descriptors

logger = logging.getLogger(__name__)

_LOCK_FILE = ".lock"
_WISH_FILE = "wish"


class SiteState:
    """The folder of a site's key, adapters and results. As a context it is held, and nobody else can hold it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> "SiteState":
        """Hold the folder.

        Raises:
            StoreError: another client holds it, it is of a newer version, or it cannot be used.
        """
        version_of(self.folder, SITE_FOLDER)  # A newer one is not even locked.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
            self._lock = open(self.folder / _LOCK_FILE, "wb")
            hold(self._lock)
            is_new = all(path.name == _LOCK_FILE for path in self.folder.iterdir())
        except BlockingIOError as error:
            raise StoreError(f"{self.folder}: this site's client is running already; end it first") from error
        except OSError as error:
            require_descriptors(error)
            raise StoreError(
                f"{self.folder}: cannot be used ({error.strerror}); choose another [site] state"
            ) from error
        try:
            for line in bring_up_to_date(self.folder, SITE_FOLDER, is_new=is_new):
                logger.info("%s", line)
        except StoreError:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def control(self, wish: str) -> None:
        """Leave a wish for the site's client, which is at work: "paused", "leave", or nothing.

        Raises:
            StoreError: no client is at work there, or the folder cannot be written, or is of a newer version.
        """
        self.require_client()
        self._wish(wish)

    def require_client(self) -> None:
        """Check that a client of this site is at work.

        Raises:
            StoreError: none is, or the folder is of a newer version.
        """
        if not self.folder.is_dir():
            raise StoreError(f"{self.folder}: this site has never joined; join first")
        version_of(self.folder, SITE_FOLDER)
        if not is_held(self.folder / _LOCK_FILE):
            raise StoreError(f"{self.folder}: no client of this site is running")

    def forget_wish(self) -> None:
        """Forget what was wished of a former client."""
        self._wish("")

    def wish(self) -> str:
        """Return the operator's wish."""
        try:
            return (self.folder / _WISH_FILE).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def _wish(self, wish: str) -> None:
        write_file(self.folder / _WISH_FILE, wish)
