"""What a run has published, as its folder holds it, and which of it is offered.

    published/NAME-vNNNN/         an adapter (fedlora.common.published)
    published/rollback.json       a Rollback: what is offered in place of newer ones, and who has said so

An operator rolls back, the server publishes: each holds the folder `published` meanwhile, whichever process it is.
"""

import fcntl
import logging
import os
import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedlora.common.codec import Codec
from fedlora.common.errors import StoreError, one_line
from fedlora.common.files import sync_folder, unwritable, write_file
from fedlora.common.folder_version import RUN_FOLDER, version_of
from fedlora.common.published import Published, read_published
from fedlora.common.run_folder import PUBLISHED_FOLDER

logger = logging.getLogger(__name__)

ROLLBACK_FILE = "rollback.json"

_VERSION = re.compile(r".+-v(\d{4,})")


@dataclass(frozen=True)
class Rollback:
    """Which adapter an operator has gone back to, and what is withdrawn for it.

    Attributes:
        name, version, round: of the adapter that was rolled back to.
        withdrawn: the versions that are not offered, whatever comes after them.
        by: the account that did it.
        at: when, in ISO 8601.
    """

    name: str
    version: int
    round: int
    withdrawn: tuple[int, ...]
    by: str
    at: str


_ROLLBACK = Codec(Rollback)


def number_of(folder: Path) -> int | None:
    """Return the version in the name of a published folder, None where it has none."""
    found = _VERSION.fullmatch(folder.name)
    return int(found[1]) if found else None


def published_in(run_folder: Path) -> tuple[Published, ...]:
    """Return the adapters of a run, newest first; a damaged one is passed over, and said."""
    found: list[Published] = []
    folder = run_folder / PUBLISHED_FOLDER
    for path in folder.iterdir() if folder.is_dir() else ():
        if number_of(path) is None:
            continue
        published = read_published(path)
        if published is None or published.name != path.name or not _is_whole(path, published):
            logger.warning("%s is damaged, and not offered", path)
        else:
            found.append(published)
    return tuple(sorted(found, key=lambda published: published.version, reverse=True))


def offered(adapters: tuple[Published, ...], rollback: Rollback | None) -> tuple[Published, ...]:
    """Return those of the adapters that sites get, newest first."""
    withdrawn = () if rollback is None else rollback.withdrawn
    return tuple(published for published in adapters if published.version not in withdrawn)


def kept(adapters: tuple[Published, ...], rollback: Rollback | None, num: int) -> tuple[Published, ...]:
    """Return which adapters stay in the folder, newest first: those that are withdrawn only where others leave room."""
    of_use = offered(adapters, rollback)
    withdrawn = [published for published in adapters if published not in of_use]
    staying = {*of_use[:num], *withdrawn[: max(num - len(of_use), 0)]}
    return tuple(published for published in adapters if published in staying)


def stands(adapters: tuple[Published, ...], rollback: Rollback | None) -> bool:
    """Return whether the newest of the adapters is withdrawn: a better one has not been published since."""
    return rollback is not None and bool(adapters) and adapters[0].version in rollback.withdrawn


def read_rollback(run_folder: Path) -> Rollback | None:
    """Return what is rolled back in a run, None where nothing is.

    Raises:
        StoreError: the record is damaged.
    """
    path = run_folder / PUBLISHED_FOLDER / ROLLBACK_FILE
    try:
        return rollback_in(path.read_bytes(), origin=str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(str(path), one_line(error)) from error


def rollback_in(content: bytes | None, *, origin: str) -> Rollback:
    """Return what a rollback.json says; None is one that cannot be read.

    Raises:
        StoreError: the record is damaged; the message names it as `origin`.
    """
    if content is None:
        raise _unreadable(origin, "no plain file, or a large one")
    try:
        return _ROLLBACK.load(content)
    except ValueError as error:
        raise _unreadable(origin, one_line(error)) from error


def roll_back(run_folder: Path, name: str | None) -> Rollback:
    """Have an earlier adapter offered in place of newer ones, and return what is done.

    Args:
        name: such as digits-v0003, or its number; None for the one before the newest that is offered.

    Raises:
        StoreError: there is no such adapter, or the folder cannot be written.
    """
    with published_held(run_folder):
        adapters = published_in(run_folder)
        try:
            before = read_rollback(run_folder)
        except StoreError:
            before = None
        shown = offered(adapters, before)
        if name is None:
            if len(shown) < 2:
                raise StoreError(f"{run_folder}: {len(shown)} adapter is offered, and no earlier one")
            chosen = shown[1]
        else:
            chosen = _named(run_folder, adapters, name)
        former = {version for version in (() if before is None else before.withdrawn) if version < chosen.version}
        newer = {published.version for published in adapters if published.version > chosen.version}
        if not newer:
            raise StoreError(
                f"{run_folder}: {chosen.name} is the newest adapter; name an earlier one, or --undo what is withdrawn"
            )
        at = datetime.now(UTC).isoformat(timespec="seconds")
        rollback = Rollback(
            chosen.name, chosen.version, chosen.round, tuple(sorted(former | newer)), account_name(), at
        )
        write_file(run_folder / PUBLISHED_FOLDER / ROLLBACK_FILE, _ROLLBACK.dump(rollback) + "\n")
    return rollback


def undo_rollback(run_folder: Path) -> None:
    """Have all adapters offered again.

    Raises:
        StoreError: nothing is rolled back, or the folder cannot be written.
    """
    path = run_folder / PUBLISHED_FOLDER / ROLLBACK_FILE
    with published_held(run_folder):
        try:
            path.unlink()
            sync_folder(path.parent)
        except FileNotFoundError as error:
            raise StoreError(f"{run_folder}: nothing is rolled back") from error
        except OSError as error:
            raise unwritable(path, 0, error) from error


@contextmanager
def published_held(run_folder: Path) -> Iterator[None]:
    """Hold the folder of what a run has published, so that what is offered stays what it is meanwhile.

    Raises:
        StoreError: there is none, the run's is of a newer version, or its disk knows no locks.
    """
    version_of(run_folder, RUN_FOLDER)
    folder = run_folder / PUBLISHED_FOLDER
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(
            f"{run_folder}: nothing is published there; expected the folder given to server start"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def account_name() -> str:
    """Return the account that this process belongs to; its number where it has no name, as in a container."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def _unreadable(origin: str, why: str) -> StoreError:
    return StoreError(f"{origin} cannot be read ({why}); give fedlora adapters rollback anew, or with --undo")


def _named(run_folder: Path, adapters: tuple[Published, ...], name: str) -> Published:
    for published in adapters:
        if name in (published.name, str(published.version), f"v{published.version:04d}"):
            return published
    names = ", ".join(published.name for published in adapters)
    raise StoreError(f"{run_folder}: there is no adapter {name}; it keeps {names or 'none'}")


def _is_whole(folder: Path, published: Published) -> bool:
    return all(
        (folder / file.name).is_file() and (folder / file.name).stat().st_size == file.size_bytes
        for file in published.files
    )
