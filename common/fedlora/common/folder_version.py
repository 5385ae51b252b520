"""The version of a folder that fedlora keeps for long: what lies where in it, and in which form.

    version.json              {"kind": "run", "version": 1, "written_by": "0.1.0"}
    migrated-from-1/former/   the files that a migration has changed, as they were
                    new/      the files that took their place
                    changed.json   the paths of both; once it is there, the migration is certain

A folder without version.json is of version 1: before there were versions, there was one form. Who holds a folder brings
it up to date before anything else is read of it, one version after the other. A migration says what changes and touches
nothing; what it says is on disk, with what was there before, before the first file is changed. So a process that is
killed meanwhile loses nothing: the next one goes on from what is on disk.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora.common.errors import StoreError, one_line
from fedlora.common.files import sync_folder, write_file
from fedlora.common.open_files import require_descriptors
from fedlora.common.parsing import json_in
from fedlora.common.versions import own_version, wheel_of

VERSION_FILE = "version.json"

Migration = Callable[[Path], Mapping[str, bytes | None]]
"""Returns, of a folder of the version before, the new content of each file that changes, None for one that goes."""


@dataclass(frozen=True)
class Form:
    """A kind of folder, and how one of each former version becomes one of the next.

    Attributes:
        kind: what the folder is, in a word.
        migrations: the first leads from version 1 to 2; the version of today follows the last.
    """

    kind: str
    migrations: tuple[Migration, ...] = ()

    @property
    def version(self) -> int:
        """That of today."""
        return 1 + len(self.migrations)


# What a former version would misread is a new one: a migration is added here, with a test over a folder of the old one.
RUN_FOLDER = Form("run")
SITE_FOLDER = Form("site")
AUTHORITY_FOLDER = Form("authority")
STORE_FOLDER = Form("store")


def version_of(folder: Path, form: Form) -> int:
    """Return the version of a folder, 1 where it does not say.

    Raises:
        StoreError: it is newer than this program, or what the folder says of it is damaged or of another kind.
    """
    path = folder / VERSION_FILE
    try:
        found = json_in(path.read_bytes())
        kind, version, by = str(found["kind"]), int(found["version"]), str(found["written_by"])
    except (FileNotFoundError, NotADirectoryError):
        return 1
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreError(f"{path} is damaged ({one_line(error)}); restore it from a backup") from error
    if kind != form.kind or version < 1:
        raise StoreError(f"{path} says {kind} {version}; expected a folder of the kind {form.kind}; choose another one")
    if version > form.version:
        raise StoreError(
            f"{folder} is of version {version} (a {kind} folder, written by fedlora {by}); this is fedlora "
            f"{own_version()}, which knows version {form.version}; {wheel_of(by)}, or restore the backup made before "
            "the upgrade"
        )
    return version


def bring_up_to_date(folder: Path, form: Form, *, is_new: bool) -> tuple[str, ...]:
    """Have a folder, which the caller holds, in today's version, and return what was done to it, in a line each.

    One that `is_new` holds nothing yet, and is of today's version.

    Raises:
        StoreError: it is newer than this program, or cannot be read or written; what it held is there.
    """
    version = version_of(folder, form)
    if is_new or (version == form.version and not (folder / VERSION_FILE).exists()):
        _write_version(folder, form, form.version)
        return ()
    lines = []
    while version < form.version:
        backup = folder / f"migrated-from-{version}"
        _migrate(folder, backup, form.migrations[version - 1])
        version += 1
        _write_version(folder, form, version)
        lines.append(f"{folder} is now of version {version}; what has changed of it is in {backup / 'former'}")
    return tuple(lines)


def _migrate(folder: Path, backup: Path, migration: Migration) -> None:
    """Change what a migration says, once that and what was there are on disk in `backup`."""
    changed = backup / "changed.json"
    try:
        if not changed.exists():
            shutil.rmtree(backup, ignore_errors=True)
            names = sorted(changes := migration(folder))
            for name in names:
                if (folder / name).is_file():
                    write_file(backup / "former" / name, (folder / name).read_bytes())
                if (content := changes[name]) is not None:
                    write_file(backup / "new" / name, content)
            write_file(changed, json.dumps(names) + "\n")
        for name in json_in(changed.read_bytes()):
            if (new := backup / "new" / name).is_file():
                write_file(folder / name, new.read_bytes())
            elif (folder / name).exists():
                os.unlink(folder / name)
                sync_folder((folder / name).parent)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            require_descriptors(error)
        raise StoreError(f"{folder}: cannot be migrated ({one_line(error)}); nothing of it is lost") from error


def _write_version(folder: Path, form: Form, version: int) -> None:
    content = {"kind": form.kind, "version": version, "written_by": own_version()}
    write_file(folder / VERSION_FILE, json.dumps(content) + "\n")
