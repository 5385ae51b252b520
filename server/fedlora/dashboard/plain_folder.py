"""A folder of which only plain files are read: no link is followed, nothing outside of it is opened, nothing waits."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedlora.common.errors import StoreError
from fedlora.common.locks import is_held

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe in the place of a file would be waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_NAMES = 10_000


@dataclass(frozen=True)
class PlainFolder:
    """The folder at `root`, or that which `parts` lead to below it; whoever made it has resolved `root`."""

    root: Path
    parts: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where it lies, for words."""
        return self.root.joinpath(*self.parts)

    def below(self, *parts: str) -> "PlainFolder":
        """Return a folder below this one."""
        return PlainFolder(self.root, (*self.parts, *parts))

    def open(self, name: str) -> BinaryIO:
        """Return a file, open for reading.

        Raises:
            OSError: it is missing or no plain file, or one of the folders above it is a link.
        """
        with self._opened() as folder:
            descriptor = os.open(_one_name(name), _FILE, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(f"{self.path / name}: no plain file")
        return os.fdopen(descriptor, "rb", buffering=0)

    def read(self, name: str, *, most_bytes: int) -> bytes | None:
        """Return what a file holds; None where it cannot be read or is larger."""
        try:
            with self.open(name) as file:
                if os.fstat(file.fileno()).st_size > most_bytes:
                    return None
                return file.read(most_bytes)
        except OSError:
            return None

    def stat(self, name: str) -> os.stat_result | None:
        """Return what is known of an entry itself, whatever it is; None where there is none."""
        with suppress(OSError), self._opened() as folder:
            return os.stat(_one_name(name), dir_fd=folder, follow_symlinks=False)
        return None

    def has_file(self, name: str) -> bool:
        """Return whether there is a plain file of a name."""
        found = self.stat(name)
        return found is not None and stat.S_ISREG(found.st_mode)

    def mark(self, name: str) -> str:
        """Return a text that changes whenever an entry does; empty where there is none."""
        found = self.stat(name)
        return "" if found is None else f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}"

    def is_held(self, name: str) -> bool:
        """Return whether a process holds the plain file of a name."""
        try:
            return self.has_file(name) and is_held(self.path / name)
        except StoreError:
            return False

    def files(self) -> list[str]:
        """Return the names of its plain files, in order; nothing where it cannot be read."""
        return self._names(is_folder=False)

    def folders(self) -> list[str]:
        """Return the names of the folders in it, links not among them, in order."""
        return self._names(is_folder=True)

    def _names(self, *, is_folder: bool) -> list[str]:
        found: list[str] = []
        with suppress(OSError), self._opened() as folder, os.scandir(folder) as entries:
            for _, entry in zip(range(_MOST_NAMES), entries, strict=False):
                is_meant = entry.is_dir if is_folder else entry.is_file
                if is_meant(follow_symlinks=False):
                    found.append(entry.name)
        return sorted(found)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.root, _FOLDER)
        try:
            for part in self.parts:
                below = os.open(_one_name(part), _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)


def _one_name(part: str) -> str:
    """Return the name of an entry.

    Raises:
        OSError: it leads elsewhere.
    """
    if part in ("", ".", "..") or "/" in part or "\0" in part:
        raise OSError(f"{part!r} is no name of an entry")
    return part
