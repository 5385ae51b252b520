"""The part of a run's page on what lies in its folder: adapters to download, refused updates, the audit log."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedlora.common.errors import StoreError
from fedlora.common.files import TEMPORARY_SUFFIX
from fedlora.common.parsing import json_in
from fedlora.common.printable import printable
from fedlora.common.published import CODEC, METADATA_FILE
from fedlora.common.run_folder import ADAPTER_FOLDER, BEST_FOLDER, PUBLISHED_FOLDER, QUARANTINE_FOLDER
from fedlora.dashboard.plain_folder import PlainFolder
from fedlora.server.disk.published_folder import ROLLBACK_FILE, Rollback, number_of, rollback_in
from fedlora.server.report.content import Columns, Section, table
from fedlora.server.report.wording import UNKNOWN, bytes_text, count_text, reason_text, score_text

_MOST_ADAPTERS = 100
_MOST_NOTES = 100
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class OfferedAdapter:
    """An adapter that can be downloaded: its folder below the run's, its files, and what is known of it in words."""

    name: str
    place: tuple[str, ...]
    files: tuple[str, ...]
    about: str
    size: str


@dataclass(frozen=True)
class _Refused:
    round: str
    site: str
    reason: str
    size: str


_COLUMNS: Columns[_Refused] = (
    ("site", lambda each: each.site),
    ("reason", lambda each: each.reason),
    ("round", lambda each: each.round),
    ("update kept", lambda each: each.size),
)


def offered_adapters(folder: PlainFolder) -> list[OfferedAdapter]:
    """Return the newest adapter, that of the best round, and the published ones, the newest version first.

    What an operator has withdrawn is not among them; nor is any published one where nobody knows what is withdrawn.
    """
    own = ((ADAPTER_FOLDER, "newest", "after the last round that is over"),
           (BEST_FOLDER, "best", "after the round with the lowest validation loss"))  # fmt: skip
    found = [
        OfferedAdapter(name, (place,), files, about, _size(folder.below(place), files))
        for place, name, about in own
        if (files := _adapter_files(folder.below(place)))
    ]
    try:
        rollback = known_rollback(folder)
    except StoreError:
        return found
    withdrawn = () if rollback is None else rollback.withdrawn
    published = folder.below(PUBLISHED_FOLDER)
    names = [name for name in published.folders() if _version(name)[0] not in withdrawn]
    for name in sorted(names, key=_version, reverse=True)[:_MOST_ADAPTERS]:
        if (each := _published(published, name)) is not None:
            found.append(each)
    return found


def known_rollback(folder: PlainFolder) -> Rollback | None:
    """Return what is rolled back in a run, None where nothing is.

    Raises:
        StoreError: the record is damaged.
    """
    published = folder.below(PUBLISHED_FOLDER)
    if published.stat(ROLLBACK_FILE) is None:
        return None
    content = published.read(ROLLBACK_FILE, most_bytes=_MOST_BYTES)
    return rollback_in(content, origin=f"{PUBLISHED_FOLDER}/{ROLLBACK_FILE}")


def is_newest_withdrawn(folder: PlainFolder, rollback: Rollback) -> bool:
    """Return whether no better adapter has been published since a rollback."""
    return max((_version(name)[0] for name in folder.below(PUBLISHED_FOLDER).folders()), default=-1) in (
        rollback.withdrawn
    )


def quarantine(folder: PlainFolder) -> Section | None:
    """Return the latest answers that were refused and set aside; nothing where there are none."""
    notes = folder.below(QUARANTINE_FOLDER)
    names = [name for name in notes.files() if name.endswith(".json")]
    found = [_refused(notes, name) for name in sorted(names, reverse=True)[:_MOST_NOTES]]
    if not found:
        return None
    about = f"{count_text(len(names), 'answer')} set aside in quarantine/"
    about += f", the last {len(found)} of them here." if len(names) > len(found) else "."
    return Section("Set aside", [[about]], table=table("Refused answers", _COLUMNS, found, num_text_columns=2))


def _published(folder: PlainFolder, name: str) -> OfferedAdapter | None:
    """Return a published adapter, None where it is not whole."""
    version = folder.below(name)
    try:
        known = CODEC.load(version.read(METADATA_FILE, most_bytes=_MOST_BYTES) or b"")
        day = datetime.fromtimestamp(known.published_seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    if known.name != name or not (files := _adapter_files(version)):
        return None
    parts = [
        f"round {known.round}",
        f"{printable(known.metric_name, most=60)} {score_text(known.metric, known.metric_name)}"
        if known.metric is not None
        else "",
        f"published {day:%Y-%m-%d %H:%M} UTC",
    ]
    about = ", ".join(filter(None, parts))
    return OfferedAdapter(name, (PUBLISHED_FOLDER, name), files, about, _size(version, files))


def _version(name: str) -> tuple[int, str]:
    number = number_of(Path(name))
    return (-1 if number is None else number), name


def _adapter_files(folder: PlainFolder) -> tuple[str, ...]:
    """Return the files of a PEFT folder; none where it holds no adapter."""
    files = tuple(name for name in folder.files() if not name.endswith(TEMPORARY_SUFFIX))
    return files if any(name.endswith(".safetensors") for name in files) else ()


def _size(folder: PlainFolder, files: tuple[str, ...]) -> str:
    return bytes_text(sum(found.st_size for name in files if (found := folder.stat(name)) is not None))


def _refused(folder: PlainFolder, name: str) -> _Refused:
    try:
        note = json_in(folder.read(name, most_bytes=_MOST_BYTES) or b"{}")
    except ValueError:
        note = {}
    said: Mapping[str, object] = note if isinstance(note, dict) else {}
    size = said.get("size_bytes")
    return _Refused(
        round=printable(said.get("round", UNKNOWN), most=12),
        site=printable(said.get("site", UNKNOWN), most=100),
        reason=reason_text(printable(said.get("reason", f"{name} cannot be read"), most=300)),
        size=bytes_text(size) if said.get("is_kept") is True and isinstance(size, int) and size >= 0 else "no",
    )
