"""What operating systems, NAS boxes and editors leave in folders: neither examples nor names of classes."""

from pathlib import Path

_NAMES = {
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "__macosx", "lost+found", "$recycle.bin",
    "system volume information", "network trash folder", "temporary items", "__pycache__",
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r",
}  # fmt: skip


def is_litter(path: Path) -> bool:
    """Return whether a file or folder of this name is hidden, or one that a system leaves behind."""
    return path.name.startswith(".") or path.name.lower() in _NAMES
