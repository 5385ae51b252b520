"""Files that are whole or absent: written under a temporary name, synced to disk, then renamed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from fedlora.common.errors import DiskFull, StoreError
from fedlora.common.open_files import require_descriptors

TEMPORARY_SUFFIX = ".tmp"

# What a disk says that has no links, or no more of them, or is another than the file's.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_file(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves either the former file or the new one.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the former file is untouched.
    """
    raw = content.encode() if isinstance(content, str) else content
    with open_replacing(path, size_bytes=len(raw)) as file:
        file.write(raw)


def write_private_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` as `write_file` does, to be read by this user alone.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the former file is untouched.
    """
    with open_replacing(path, size_bytes=len(content)) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)


@contextmanager
def open_replacing(path: Path, *, size_bytes: int) -> Iterator[BinaryIO]:
    """Return a file to write into that takes the place of `path` when the block ends well, and is gone otherwise.

    Args:
        size_bytes: how large it will be, for the message.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the former file is untouched.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise unwritable(path, size_bytes, error) from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(source: Path, target: Path) -> None:
    """Move a written file to `target`, synced, so that a crash leaves either the former file there or this one."""
    with open(source, "rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)
    sync_folder(target.parent)


def append_to_file(path: Path, content: bytes) -> None:
    """Add `content` to the end of a file, synced; a crash may leave a part of it there.

    Raises:
        StoreError: the disk is full or the file cannot be written; it is as it was.
    """
    try:
        with open(path, "ab") as file:
            before = os.fstat(file.fileno()).st_size
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # A nearly full disk takes a piece.
                os.ftruncate(file.fileno(), before)
                raise
    except OSError as error:
        raise unwritable(path, len(content), error) from error


def link_file(source: Path, target: Path) -> None:
    """Give a synced file a second name, in place of whatever has that name; where disks have no links, a copy.

    The name itself is on disk with the next file that is written to its folder.

    Raises:
        StoreError: the folder cannot be written.
    """
    temporary = target.with_name(f"{target.name}{TEMPORARY_SUFFIX}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, target)
        # Where both are one file already, a rename does nothing, and leaves its source.
        temporary.unlink(missing_ok=True)
    except OSError as error:
        require_descriptors(error)
        if error.errno in _FULL:
            raise unwritable(target, source.stat().st_size, error) from error
        raise StoreError(f"cannot write {target}: {error.strerror}; choose another folder with --out") from error


def client_file_name(client: str) -> str:
    """Return the name of a client's files, its own whatever its length and also where case makes no difference."""
    return f"{quote(client, safe='')[:40]}-{hashlib.sha256(client.encode()).hexdigest()[:16]}"


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the hex sha256 over the content of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def require_free(out: Path) -> None:
    """Raise StoreError if there is something at `out`, the folder that a command is to write, or it cannot be seen."""
    try:
        is_free = not os.path.lexists(out) or (out.is_dir() and next(out.iterdir(), None) is None)
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"--out {out}: cannot be read ({error.strerror}); choose another folder") from error
    if not is_free:
        what = "is not empty" if out.is_dir() else "is a file"
        raise StoreError(f"--out {out}: {what}; expected a new or an empty folder, nothing is overwritten")


def unwritable(path: Path, size_bytes: int, error: OSError) -> StoreError:
    """Return the error to raise where a file of so many bytes cannot be written, by what the system said.

    Raises:
        StoreError: that is no matter of the file: this process has too many open.
    """
    require_descriptors(error)
    reason = error.strerror or type(error).__name__
    kind = DiskFull if error.errno in _FULL else StoreError
    return kind(
        f"cannot write {path} ({size_bytes:,} bytes): {reason}; free some space or choose another folder with --out"
    )
