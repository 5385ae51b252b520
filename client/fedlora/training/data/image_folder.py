"""Pictures in folders: class/picture, or domain/class/picture."""

import hashlib
import logging
import os
from pathlib import Path

import numpy as np

from fedlora.common.errors import DataError
from fedlora.training.data.examples import Images, Note
from fedlora.training.data.given_splits import split_of_name
from fedlora.training.data.litter import is_litter
from fedlora.training.data.picture_reading import Wanted, notes_on, read_pictures
from fedlora.training.data.pictures import Opened, opened_bytes
from fedlora.training.data.source import Source, enumeration

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
EXPECTED = "expected class/picture.png, or domain/class/picture.png, throughout"


def read_image_folder(folder: Path, *, image_size: int, wanted: Wanted = "auto") -> Source:
    """Return the pictures of a folder in RGB, `image_size` pixels square, their domain as their group.

    Pictures are turned upright by their EXIF orientation and put on white where they are transparent. Hidden files
    and what systems leave in folders are left alone; files of other kinds too, with a warning.

    Args:
        wanted: black and white of pictures that are deeper than 8 bits.

    Raises:
        DataError: no pictures, another arrangement of folders, or a picture that cannot be read.
    """
    files, litter = _pictures(folder)
    inputs = np.empty((len(files), image_size, image_size, 3), np.uint8)
    digests = [b""] * len(files)

    def open_picture(index: int) -> Opened:
        try:
            content = files[index].read_bytes()
        except OSError as error:
            raise DataError(f"{files[index]}: cannot be read ({error.strerror})") from error
        digests[index] = hashlib.sha256(content).digest()
        try:
            return opened_bytes(content, image_size)
        except ValueError as error:
            raise DataError(f"{files[index]}: {error}; replace or remove it") from error

    def put(index: int, pixels: Images) -> None:
        inputs[index] = pixels  # grey is repeated over the three channels

    reading = read_pictures(list(map(str, files)), open_picture, put, image_size=image_size, wanted=wanted)
    digest = hashlib.sha256()
    for file, file_digest in zip(files, digests, strict=True):
        digest.update(os.fsencode(file.relative_to(folder)) + b"\0" + file_digest)
    parts = [file.relative_to(folder).parts for file in files]
    labels = np.array([part[-2] for part in parts], dtype=np.str_)
    groups = np.array([part[0] if len(part) == 3 else "" for part in parts], dtype=np.str_)
    notes = (*_notes_on_litter(folder, litter), *notes_on(reading, origin=str(folder)))
    return Source(
        inputs,
        labels,
        groups,
        split_by=None,
        fingerprint=digest.hexdigest(),
        notes=notes,
        pixel_range=reading.ends,
    )


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the pictures in the order of their names, and the litter among them.

    All pictures are at the same depth: 2 (class/) or 3 (domain/class/).
    """
    pictures: list[Path] = []
    others: list[Path] = []
    litter: list[Path] = []
    for file in _visible_files(folder, depth=3, litter=litter):
        (pictures if file.suffix.lower() in SUFFIXES else others).append(file)
    if not pictures:
        found = f"only {enumeration(sorted({file.suffix or file.name for file in others}))}" if others else "empty"
        raise DataError(f"{folder}: no pictures ({found}); {EXPECTED}; the suffixes are {' '.join(SUFFIXES)}")
    by_depth = {len(file.relative_to(folder).parts): file for file in pictures}
    if len(by_depth) > 1:
        raise DataError(
            f"{folder}: pictures at different depths, such as "
            f"{' and '.join(str(file.relative_to(folder)) for _, file in sorted(by_depth.items()))}; {EXPECTED}"
        )
    if 1 in by_depth:
        raise DataError(f"{folder}: {by_depth[1].name} lies in no class folder; {EXPECTED}")
    if others:
        logger.warning(
            "%s: left out what is no picture: %d (%s), such as %s",
            folder,
            len(others),
            enumeration(sorted({file.suffix for file in others})),
            others[0].relative_to(folder),
        )
    return pictures, litter


def _notes_on_litter(folder: Path, litter: list[Path]) -> list[Note]:
    if not litter:
        return []
    names = enumeration(sorted({path.name for path in litter}))
    # Hidden files are expected anywhere; a folder that would have been a class or a domain is not.
    is_seen = any(not path.name.startswith(".") for path in litter)
    return [Note(f"{folder}: passed over {len(litter):,} that systems leave in folders: {names}", is_warning=is_seen)]


def _visible_files(folder: Path, *, depth: int, litter: list[Path]) -> list[Path]:
    """Return the files at most `depth` levels below, sorted by name at each level; hidden ones go to `litter`."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    litter += filter(is_litter, found)
    files: list[Path] = []
    for entry in found:
        if is_litter(entry):
            continue
        if not entry.is_dir():
            files.append(entry)
        elif depth > 1:
            files += _visible_files(entry, depth=depth - 1, litter=litter)
        else:
            is_split_inside = split_of_name(entry.parent.name) is not None
            hint = "; what is split already has train/ and test/ first, as train/domain/class/" * is_split_inside
            raise DataError(f"{entry}: a folder too deep; {EXPECTED}{hint}")
    return files
