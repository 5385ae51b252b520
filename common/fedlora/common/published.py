"""A published adapter: a PEFT folder under a versioned name, and adapter.json beside its files, which says what it is.

    digits-v0003/
        adapter_config.json, adapter_model.safetensors    PEFT's
        adapter.json                                      a Published

The server publishes such folders, and a site's copy of one is the same.
"""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fedlora.common.codec import Codec
from fedlora.common.errors import RunError, StoreError
from fedlora.common.files import sha256_of, sync_folder
from fedlora.common.open_files import require_descriptors
from fedlora.common.printable import printable
from fedlora.v1 import messages_pb2, registry_pb2

METADATA_FILE = "adapter.json"

_NAME = re.compile(r"\w[\w.-]{0,79}")
_MAX_FILES = 1_000
_LONGEST_WORD = 64
# Of the year 9999, the last that a calendar here knows.
_LAST_SECOND = 253_402_300_800 - 86_400


@dataclass(frozen=True)
class PublishedFile:
    """One of PEFT's files; `sha256` is in hex."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Published:
    """What adapter.json says of its folder.

    Attributes:
        name: the folder's, such as digits-v0003.
        version: from 1 on.
        run: the run's id.
        round: after which it was the global adapter.
        published_seconds: since 1970.
        metric: on the held-out examples judged after the round; None without any.
        base_model: as the run names it.
    """

    name: str
    version: int
    run: str
    round: int
    published_seconds: int
    metric_name: str
    metric: float | None
    base_model: str
    files: tuple[PublishedFile, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(file.size_bytes for file in self.files)


CODEC = Codec(Published)


def versioned_name(run_name: str, version: int) -> str:
    """Return the name of a version's folder: short, and plain whatever the run's name."""
    plain = re.sub(r"[^\w.-]+", "-", run_name)[:40].strip(".-")
    return f"{plain or 'adapter'}-v{version:04d}"


def read_published(folder: Path) -> Published | None:
    """Return what the adapter in `folder` is, or None where the folder is none or its adapter.json is damaged."""
    try:
        return CODEC.load((folder / METADATA_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def described_files(folder: Path, names: Collection[str]) -> tuple[PublishedFile, ...]:
    """Return size and digest of some files of a folder."""
    return tuple(
        PublishedFile(name, sha256_of([folder / name]), (folder / name).stat().st_size) for name in sorted(names)
    )


def move_folder(source: Path, target: Path) -> None:
    """Give a folder of synced files a name that is free: after a crash it has it whole, or not at all.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        sync_folder(source)
        os.rename(source, target)
        sync_folder(target.parent)
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"cannot write {target}: {error.strerror}; choose another folder with --out") from error


def to_message(published: Published) -> registry_pb2.PublishedAdapter:
    """Return `published` as it travels."""
    return registry_pb2.PublishedAdapter(
        name=published.name,
        version=published.version,
        run=published.run,
        round=published.round,
        published_seconds=published.published_seconds,
        metric_name=published.metric_name,
        metric=published.metric,
        base_model=published.base_model,
        files=[
            registry_pb2.PublishedFile(
                name=file.name,
                blob=messages_pb2.Blob(sha256=bytes.fromhex(file.sha256), size_bytes=file.size_bytes),
            )
            for file in published.files
        ],
    )


def from_message(message: registry_pb2.PublishedAdapter) -> Published:
    """Return the adapter that a server describes.

    Raises:
        RunError: its name or a file's is not one for a folder, or a digest is none.
    """
    names = [message.name, *(file.name for file in message.files)]
    for name in names:
        if not _NAME.fullmatch(name) or name == METADATA_FILE:
            raise RunError(f"the server names an adapter's folder or file {name[:80]!r}; expected a plain name")
    if len(names) > _MAX_FILES or len(set(names)) < len(names):
        raise RunError(f"the server lists {len(names) - 1} files in {message.name}, some twice; expected each once")
    if any(len(file.blob.sha256) != 32 for file in message.files) or message.version == 0:
        raise RunError(f"the server describes {message.name} without digest or version; update fedlora")
    if not 0 <= message.published_seconds < _LAST_SECOND:
        raise RunError(f"the server says that {message.name} is of second {message.published_seconds}; update fedlora")
    return Published(
        message.name,
        message.version,
        printable(message.run, most=_LONGEST_WORD),
        message.round,
        message.published_seconds,
        printable(message.metric_name, most=_LONGEST_WORD),
        message.metric if message.HasField("metric") else None,
        printable(message.base_model, most=300),
        tuple(PublishedFile(file.name, file.blob.sha256.hex(), file.blob.size_bytes) for file in message.files),
    )
