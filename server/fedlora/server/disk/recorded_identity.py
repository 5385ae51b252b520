"""Where a server's authority and its sites' records lie, as its folder, a run's or a store's, records it.

What lies within the folder is recorded as it lies there, so that a copy of the folder has its own.
"""

import os
from pathlib import Path

from fedlora.common.run_folder import IDENTITY_FOLDER

_KEY_FILE = "ca.key"


def recorded_identity(folder: Path, identity: Path | None) -> str | None:
    """Return what `folder` records of an identity: nothing of its own identity/, or where there is none."""
    if identity is None:
        return None
    try:
        within = Path(os.path.realpath(identity)).relative_to(os.path.realpath(folder))
    except ValueError:
        return str(identity.absolute())
    return None if within == Path(IDENTITY_FOLDER) else str(within)


def identity_in(folder: Path, recorded: object) -> Path:
    """Return where the identity of a folder lies, by what that records.

    Fedlora 0.1 recorded a folder's own by its whole path as well, which in a copy of that folder is the original's: of
    two with one key, a folder means its own.
    """
    own = folder / IDENTITY_FOLDER
    if not recorded:
        return own
    found = folder / str(recorded)
    is_copied = found.name == IDENTITY_FOLDER and own.is_dir() and (not found.is_dir() or _key(found) == _key(own))
    return own if is_copied else found


def _key(identity: Path) -> bytes | None:
    """Return an authority's key; None where it is external, or cannot be read."""
    try:
        return (identity / _KEY_FILE).read_bytes()
    except OSError:
        return None
