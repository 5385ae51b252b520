"""What lies in folders of data and is none: what systems put there, and what describes the data."""

from collections.abc import Iterable
from pathlib import Path, PurePath

# Of storage boxes (@eaDir, #recycle), of Windows and macOS, of the archives that macOS packed, and of file systems.
_LITTER = frozenset(
    (
        "@eadir", "@recycle", "@recently-snapshot", "@sharebin", "@tmp", "#recycle", "#snapshot",
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "system volume information",
        "__macosx", "lost+found", "network trash folder", "temporary items", "icon\r", "__pycache__",
    )
)  # fmt: skip

# Written beside tables by the library `datasets`.
METADATA = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))


def is_litter(path: PurePath) -> bool:
    """Return whether a file or folder of this name is no one's data: hidden, a lock, or a system's own."""
    name = path.name.casefold()
    return name.startswith((".", "~$")) or name in _LITTER


def without_litter(paths: Iterable[Path], *, below: Path) -> list[Path]:
    """Return the paths in their order, without litter and what lies in it, as far as it is below a folder."""
    return [path for path in paths if not any(is_litter(PurePath(part)) for part in path.parts[len(below.parts) :])]
