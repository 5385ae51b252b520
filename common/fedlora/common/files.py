"""Files that are whole or absent: written under a temporary name, synced to disk, then renamed."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from fedlora.common.errors import StoreError

TEMPORARY_SUFFIX = ".tmp"


def write_file(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a crash leaves either the former file or the new one.

    Raises:
        StoreError: the disk is full or the folder cannot be written; the former file is untouched.
    """
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error.strerror or type(error).__name__
        raise StoreError(
            f"cannot write {path} ({len(raw):,} bytes): {reason}; free some space or choose another folder with --out"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the hex sha256 over the content of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
