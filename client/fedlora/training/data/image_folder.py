"""Pictures in folders: class/picture, or domain/class/picture."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedlora.common.errors import DataError
from fedlora.training.data.examples import Images
from fedlora.training.data.pictures import eight_bit, square
from fedlora.training.data.source import Source, enumeration

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXPECTED = "expected class/picture.png, or domain/class/picture.png, throughout"


def read_image_folder(folder: Path, *, image_size: int) -> Source:
    """Return the pictures of a folder in RGB, `image_size` pixels square, their domain as their group.

    Pictures are turned upright by their EXIF orientation and put on white where they are transparent. Hidden files
    are left alone; files of other kinds too, with a warning.

    Raises:
        DataError: no pictures, another arrangement of folders, or a picture that cannot be read.
    """
    files = _pictures(folder)
    inputs = np.empty((len(files), image_size, image_size, 3), np.uint8)

    def decode(index: int) -> bytes:
        try:
            content = files[index].read_bytes()
        except OSError as error:
            raise DataError(f"{files[index]}: cannot be read ({error.strerror})") from error
        inputs[index] = _decoded(content, image_size, path=files[index])
        return hashlib.sha256(content).digest()

    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # Pillow frees the interpreter lock while it decodes
        for file, file_digest in zip(files, pool.map(decode, range(len(files))), strict=True):
            digest.update(os.fsencode(file.relative_to(folder)) + b"\0" + file_digest)
    parts = [file.relative_to(folder).parts for file in files]
    labels = np.array([part[-2] for part in parts], dtype=np.str_)
    groups = np.array([part[0] if len(part) == 3 else "" for part in parts], dtype=np.str_)
    return Source(inputs, labels, groups, split_by=None, fingerprint=digest.hexdigest())


def _decoded(content: bytes, size: int, *, path: Path) -> Images:
    """Return one picture as (size, size, 3) uint8."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            # A JPEG can be decoded at a fraction of its size, in a tenth of the time for a photo of 12 megapixels.
            picture.draft(None, (2 * size, 2 * size))
            return square(eight_bit(picture).convert("RGB"), size)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not a picture ({len(content):,} bytes); replace or remove it") from error
    # A damaged PNG is a SyntaxError to Pillow, a damaged header of others a ValueError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a picture ({reason}); replace or remove it") from error


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures in the order of their names, all at the same depth: 2 (class/) or 3 (domain/class/)."""
    pictures: list[Path] = []
    others: list[Path] = []
    for file in _visible_files(folder, depth=3):
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
    return pictures


def _visible_files(folder: Path, *, depth: int) -> list[Path]:
    """Return the files at most `depth` levels below, sorted by name at each level, without the hidden ones."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error
    files: list[Path] = []
    for entry in entries:
        if not entry.is_dir():
            files.append(entry)
        elif depth > 1:
            files += _visible_files(entry, depth=depth - 1)
        else:
            raise DataError(f"{entry}: a folder too deep; {EXPECTED}")
    return files
