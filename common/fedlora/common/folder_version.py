"""The version of a folder that fedlora keeps for long: what lies where in it, and in which form.

    version.json              {"kind": "run", "version": 1, "written_by": "0.1.0"}, "is_migrating" while it is half done
    migrated-from-1/former/   the files that a migration has changed, as they were
                    new/      the files that took their place
                    changed.json   the paths of both

A folder without version.json is of version 1: before there were versions, there was one form. Who holds a folder brings
it up to date before anything else is read of it, one version after the other. A migration says what changes and touches
nothing; what it says is on disk, with what was there before, and version.json has the new version, before the first
file is changed. So a process that is killed meanwhile loses nothing: the next one goes on from what is on disk, and a
program that knows the former version alone does not take the half of each for its own.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlora.common.errors import StoreError, one_line
from fedlora.common.files import sync_folder, write_file
from fedlora.common.open_files import require_descriptors
from fedlora.common.parsing import json_in
from fedlora.common.versions import own_version, wheel_of

VERSION_FILE = "version.json"
_CHANGED_FILE = "changed.json"

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


@dataclass(frozen=True)
class _Said:
    kind: str
    version: int
    by: str
    is_migrating: bool


def version_of(folder: Path, *forms: Form) -> int:
    """Return the version of a folder that is of one of some kinds, 1 where it does not say.

    Raises:
        StoreError: it is newer than this program, or what the folder says of it is damaged or of another kind.
    """
    said = _said(folder)
    if said is None:
        return 1
    form = next((form for form in forms if form.kind == said.kind), None)
    if form is None or said.version < 1:
        kinds = " or ".join(form.kind for form in forms)
        raise StoreError(
            f"{folder / VERSION_FILE} says {said.kind} {said.version}; expected a folder of the kind {kinds}; choose "
            "another one"
        )
    if said.version > form.version:
        raise StoreError(
            f"{folder} is of version {said.version} (a {said.kind} folder, written by fedlora {said.by}); this is "
            f"fedlora {own_version()}, which knows version {form.version}; {wheel_of(said.by)}, or restore the backup "
            "made before the upgrade"
        )
    return said.version


def _said(folder: Path) -> _Said | None:
    """Return what a folder says of its version, None where it says nothing.

    Raises:
        StoreError: that is damaged, or cannot be read.
    """
    path = folder / VERSION_FILE
    try:
        found = json_in(path.read_bytes())
        return _Said(
            str(found["kind"]), int(found["version"]), str(found["written_by"]), bool(found.get("is_migrating"))
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        require_descriptors(error)
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise StoreError(f"{path} is damaged ({one_line(error)}); restore it from a backup") from error


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
    said, lines = _said(folder), []
    is_half_done = said is not None and said.is_migrating
    if is_half_done:
        version -= 1
    while version < form.version:
        backup = folder / f"migrated-from-{version}"
        with _as_store_errors(folder):
            if not is_half_done:
                _prepare(folder, backup, form.migrations[version - 1])
                _write_version(folder, form, version + 1, is_migrating=True)
            _replace(folder, backup)
        is_half_done = False
        version += 1
        _write_version(folder, form, version)
        lines.append(f"{folder} is now of version {version}; what has changed of it is in {backup / 'former'}")
    return tuple(lines)


def _prepare(folder: Path, backup: Path, migration: Migration) -> None:
    """Write what a migration says, and what was there, into `backup`; whatever another one has left there goes."""
    shutil.rmtree(backup, ignore_errors=True)
    names = sorted(changes := migration(folder))
    for name in names:
        if (folder / name).is_file():
            write_file(backup / "former" / name, (folder / name).read_bytes())
        if (content := changes[name]) is not None:
            write_file(backup / "new" / name, content)
    write_file(backup / _CHANGED_FILE, json.dumps(names) + "\n")


def _replace(folder: Path, backup: Path) -> None:
    """Put the new files of a migration in the place of the former ones, as often as it takes."""
    for name in json_in((backup / _CHANGED_FILE).read_bytes()):
        if (new := backup / "new" / name).is_file():
            write_file(folder / name, new.read_bytes())
        elif (folder / name).exists():
            os.unlink(folder / name)
            sync_folder((folder / name).parent)


@contextmanager
def _as_store_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            require_descriptors(error)
        raise StoreError(f"{folder}: cannot be migrated ({one_line(error)}); nothing of it is lost") from error


def _write_version(folder: Path, form: Form, version: int, *, is_migrating: bool = False) -> None:
    content: dict[str, object] = {"kind": form.kind, "version": version, "written_by": own_version()}
    if is_migrating:
        content["is_migrating"] = True
    write_file(folder / VERSION_FILE, json.dumps(content) + "\n")
