"""Digests of large files, computed once: a base model of 16 GB is not read again at every start."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.files import sha256_of, write_file
from fedlora.common.parsing import json_in

_MAX_REMEMBERED = 1_000


def remembered_sha256(paths: Sequence[Path]) -> str:
    """Return the hex sha256 over the content of `paths`, in their order, from memory where no file has changed.

    What was computed is kept in the user's cache folder, under the files' paths, sizes and times of change.
    """
    key = json.dumps([_state(path) for path in paths])
    memory = cache_folder() / "file_digests.json"
    remembered = _read(memory)
    if key not in remembered:
        remembered[key] = sha256_of(paths)
        newest = dict(list(remembered.items())[-_MAX_REMEMBERED:])
        with suppress(StoreError):  # Without a memory it is computed again.
            write_file(memory, json.dumps(newest))
    return remembered[key]


def cache_folder() -> Path:
    """Return the folder for what can be computed again: XDG_CACHE_HOME, or ~/.cache, and in it fedlora."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "fedlora"


def _state(path: Path) -> list[str | int]:
    found = path.stat()
    return [str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ino]


def _read(memory: Path) -> dict[str, str]:
    try:
        content = json_in(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(key): str(digest) for key, digest in content.items()} if isinstance(content, dict) else {}
