"""Refused updates, set aside for who wants to look.

    quarantine/NNNN-NAME-HASH-K.json    why the site's K-th answer of round NNNN is refused (K from 0)
    quarantine/...-K.safetensors        the update itself, as it came

They lie under the name of the site that sent them, as its connection has it, whatever they say of themselves, and
nothing takes the place of another. What is kept is bounded: where it is more, the site that holds the most of it loses
its oldest, so that nobody can crowd out the others'. Nothing here ever keeps a run from going on.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.files import client_file_name, link_file, write_file
from fedlora.common.packed_file import Packed, PackedFile
from fedlora.common.printable import printable

logger = logging.getLogger(__name__)

MOST_BYTES = 1 << 30
MOST_NOTES = 1_000
# A refused update is the first thing to do without where the disk runs full.
_LEAST_FREE_BYTES = 256 << 20
_UPDATE, _NOTE = ".safetensors", ".json"


@dataclass(frozen=True)
class _Entry:
    """One answer in quarantine: its place but for the suffix, whose it is, and its size with what lies beside it."""

    place: Path
    owner: str
    modified_ns: int
    size_bytes: int

    def remove(self) -> None:
        for suffix in (_UPDATE, _NOTE):
            _file(self.place, suffix).unlink(missing_ok=True)


def set_aside(
    folder: Path,
    *,
    site: str,
    round: int,
    reason: str,
    packed: Packed = b"",
    claims: Mapping[str, object] | None = None,
    most_bytes: int = MOST_BYTES,
    most_notes: int = MOST_NOTES,
) -> None:
    """Keep a refused update, with its reason, or of one that is too large the reason alone.

    Args:
        folder: the quarantine.
        site: who sent it, as its connection has it.
        claims: what it says of itself.
        most_bytes, most_notes: what the folder may hold.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{round:04d}-{client_file_name(site)}"
        place = next(path for number in count() if not _file(path := folder / f"{stem}-{number}", _NOTE).exists())
        size_bytes = packed.path.stat().st_size if isinstance(packed, PackedFile) else len(packed)
        is_kept = 0 < size_bytes <= most_bytes and shutil.disk_usage(folder).free > size_bytes + _LEAST_FREE_BYTES
        if is_kept and isinstance(packed, PackedFile):
            link_file(packed.path, _file(place, _UPDATE))
        elif is_kept and isinstance(packed, bytes):
            write_file(_file(place, _UPDATE), packed)
        said = {key: printable(value, most=100) for key, value in (claims or {}).items()}
        note = {"round": round, "site": site, "reason": reason, "size_bytes": size_bytes, "is_kept": is_kept}
        write_file(_file(place, _NOTE), json.dumps(note | {"it_says": said}) + "\n")
        _make_room(folder, most_bytes=most_bytes, most_notes=most_notes)
    except (StoreError, OSError) as error:
        logger.warning("round %d: the refused update of %s is not set aside: %s", round, site, error)


def _make_room(folder: Path, *, most_bytes: int, most_notes: int) -> None:
    """Remove entries until the folder holds no more than it may."""
    entries = sorted(map(_entry, folder.glob(f"*{_NOTE}")), key=lambda entry: (entry.modified_ns, entry.place.name))
    num_bytes, num_notes = Counter[str](), Counter[str]()
    for entry in entries:
        num_bytes[entry.owner] += entry.size_bytes
        num_notes[entry.owner] += 1
    while num_bytes.total() > most_bytes or num_notes.total() > most_notes:
        held = num_bytes if num_bytes.total() > most_bytes else num_notes
        owner = held.most_common(1)[0][0]
        oldest = next(entry for entry in entries if entry.owner == owner)
        oldest.remove()
        entries.remove(oldest)
        num_bytes[owner] -= oldest.size_bytes
        num_notes[owner] -= 1


def _entry(note: Path) -> _Entry:
    place, status = note.with_name(note.name.removesuffix(_NOTE)), note.stat()
    update = _file(place, _UPDATE)
    beside = update.stat().st_size if update.is_file() else 0
    owner = place.name.partition("-")[2].rpartition("-")[0]
    return _Entry(place, owner, status.st_mtime_ns, status.st_size + beside)


def _file(place: Path, suffix: str) -> Path:
    # A site's name may have a dot, which with_suffix would take for a suffix.
    return place.with_name(place.name + suffix)
