"""Pictures in an .npz file: keys images and labels, or DOMAIN_images and DOMAIN_labels for each domain."""

import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedlora.common.errors import DataError, one_line
from fedlora.common.files import sha256_of
from fedlora.training.data.examples import Images
from fedlora.training.data.picture_reading import PictureReading, Wanted, notes_on, read_pictures
from fedlora.training.data.pictures import channel_axis, opened_array, resized, same_channels
from fedlora.training.data.source import Source, enumeration

EXPECTED = "expected images and labels, or DOMAIN_images and DOMAIN_labels for each domain"

# What zipfile and numpy raise for a damaged file; RuntimeError is zipfile's word for an encrypted or unknown method.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def domains_of(path: Path) -> list[str]:
    """Return the domains of an .npz file of pictures, "" for one without domains.

    Raises:
        DataError: the file cannot be read, or its keys are others.
    """
    with _opened(path) as archive:
        return list(_domains(path, archive.files))


def read_image_archive(
    path: Path, *, image_size: int, wanted: Wanted = "auto", domains: Mapping[str, str] | None = None
) -> Source:
    """Return the pictures of an .npz file, their domain as their group, `image_size` pixels square.

    DOMAIN_images is (n, height, width), with or without 1 to 4 channels last or first: uint8, or other numbers whose
    range is the run's. DOMAIN_labels (n,) or (n, 1) are whole numbers or text. Other keys are left alone.

    Args:
        wanted: black and white of pictures that are not uint8.
        domains: the domains that are read, each with the group that it is; all as themselves without it.

    Raises:
        DataError: the file cannot be read, or its arrays are others.
    """
    with _opened(path) as archive:
        keys = _domains(path, archive.files)
        groups_of = {domain: domain for domain in keys} if domains is None else domains
        arrays = {domain: (archive[keys[domain][0]], archive[keys[domain][1]]) for domain in groups_of}
    fingerprint = sha256_of([path])
    given = [_images(images, where=f"{path}: {keys[domain][0]}") for domain, (images, _) in arrays.items()]
    labels = [
        _labels(labels, count=len(images), where=f"{path}: {keys[domain][1]}")
        for domain, (images, labels) in arrays.items()
    ]
    if not any(map(len, given)):
        raise DataError(f"{path}: no pictures in it")
    pictures, reading = _eight_bit(given, [keys[domain][0] for domain in arrays], path, image_size, wanted)
    groups = np.repeat(np.array([groups_of[domain] for domain in arrays], np.str_), [len(part) for part in pictures])
    return Source(
        np.concatenate(same_channels(pictures)),
        np.concatenate(labels),
        groups,
        split_by=None,
        fingerprint=fingerprint if domains is None else sha256(f"{fingerprint} {sorted(domains)}".encode()).hexdigest(),
        notes=tuple(notes_on(reading, origin=str(path))),
        pixel_range=reading.ends,
    )


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Yield the archive; what goes wrong in reading from it is a DataError."""
    try:
        # numpy leaves a file that it opened itself open when it is no .npz.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array; {EXPECTED}")
            with archive:
                yield archive
    except UNREADABLE as error:
        reason = one_line(error)
        raise DataError(f"{path}: cannot be read as .npz ({reason}); write it with numpy.savez_compressed") from error


def _eight_bit(
    given: list[npt.NDArray[Any]], keys: list[str], path: Path, image_size: int, wanted: Wanted
) -> tuple[list[Images], PictureReading]:
    """Return the pictures of each array as uint8; those that are not are brought to one range over all arrays."""
    is_plain = [(part.dtype == np.uint8 and part.shape[3] in (1, 3)) or not len(part) for part in given]
    places = [(part, row) for part, plain in enumerate(is_plain) if not plain for row in range(len(given[part]))]
    others: list[Images] = [np.empty(0, np.uint8)] * len(places)
    reading = read_pictures(
        [f"{path}: {keys[part]}[{row}]" for part, row in places],
        lambda index: opened_array(given[places[index][0]][places[index][1]]),
        others.__setitem__,
        image_size=image_size,
        wanted=wanted,
    )
    finished = iter(same_channels(others))
    pictures = [
        resized(part.astype(np.uint8, copy=False), image_size) if plain else np.stack([next(finished) for _ in part])
        for part, plain in zip(given, is_plain, strict=True)
    ]
    return pictures, reading


def _domains(path: Path, keys: list[str]) -> dict[str, tuple[str, str]]:
    """Return for each domain the keys of its pictures and labels; a file without domains has the one domain ""."""
    found: dict[str, tuple[str, str]] = {}
    for key in keys:
        if match := re.fullmatch(r"(?:(.+)_)?images", key):
            labels = key.removesuffix("images") + "labels"
            if labels not in keys:
                raise DataError(f"{path}: {key} without {labels}; its keys are {enumeration(keys)}; {EXPECTED}")
            found[match[1] or ""] = (key, labels)
    if not found:
        raise DataError(f"{path}: no key with pictures; its keys are {enumeration(keys) or 'none'}; {EXPECTED}")
    if "" in found and len(found) > 1:
        raise DataError(f"{path}: both images and {', '.join(f'{name}_images' for name in found if name)}; {EXPECTED}")
    return found


def _images(array: npt.NDArray[Any], *, where: str) -> npt.NDArray[Any]:
    """Return the array as (n, height, width, channels)."""
    found = f"{where} is {array.dtype} of shape {array.shape}"
    if array.dtype.kind not in "biuf" or array.ndim not in (3, 4):
        raise DataError(
            f"{found}; expected uint8, or other numbers, of shape (n, height, width) or (n, height, width, 3)"
        )
    try:
        axis = channel_axis(array.shape[1:])
    except ValueError as error:
        raise DataError(f"{found}; each picture is {error}") from error
    images = array[..., np.newaxis] if axis is None else np.moveaxis(array, axis + 1, -1)
    return images.astype(np.uint8) * 255 if array.dtype == np.bool_ else images


def _labels(array: npt.NDArray[np.generic], *, count: int, where: str) -> npt.NDArray[np.str_]:
    if array.shape not in ((count,), (count, 1)):
        raise DataError(f"{where} has shape {array.shape}; expected ({count},), one label for each picture")
    if array.dtype.kind not in "iuU":
        raise DataError(f"{where} is {array.dtype}; expected whole numbers or text")
    return array.reshape(count).astype(np.str_)
