"""Pictures in an .npz file: keys images and labels, or DOMAIN_images and DOMAIN_labels for each domain."""

import re
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedlora.common.errors import DataError
from fedlora.common.files import sha256_of
from fedlora.training.data.examples import Images
from fedlora.training.data.pictures import resized, same_channels
from fedlora.training.data.source import Source, enumeration

EXPECTED = "expected images and labels, or DOMAIN_images and DOMAIN_labels for each domain"

# What zipfile and numpy raise for a damaged file; RuntimeError is zipfile's word for an encrypted or unknown method.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)


def read_image_archive(path: Path, *, image_size: int) -> Source:
    """Return the pictures of an .npz file, their domain as their group, `image_size` pixels square.

    DOMAIN_images is uint8, (n, height, width), (n, height, width, 1) or (n, height, width, 3); DOMAIN_labels (n,) are
    whole numbers or text. Other keys are left alone.

    Raises:
        DataError: the file cannot be read, or its arrays are others.
    """
    try:
        # numpy leaves a file that it opened itself open when it is no .npz.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array; {EXPECTED}")
            with archive:
                domains = _domains(path, archive.files)
                arrays = {domain: (archive[images], archive[labels]) for domain, (images, labels) in domains.items()}
        fingerprint = sha256_of([path])
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as .npz ({reason}); write it with numpy.savez_compressed") from error
    pictures = [
        resized(_images(images, where=f"{path}: {domains[domain][0]}"), image_size)
        for domain, (images, _) in arrays.items()
    ]
    labels = [
        _labels(labels, count=len(images), where=f"{path}: {domains[domain][1]}")
        for domain, (images, labels) in arrays.items()
    ]
    if not any(map(len, pictures)):
        raise DataError(f"{path}: no pictures in it")
    groups = np.repeat(np.array(list(arrays), dtype=np.str_), [len(part) for part in pictures])
    return Source(
        np.concatenate(same_channels(pictures)), np.concatenate(labels), groups, split_by=None, fingerprint=fingerprint
    )


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


def _images(array: npt.NDArray[np.generic], *, where: str) -> Images:
    """Return the array as (n, height, width, channels)."""
    images = array[..., np.newaxis] if array.ndim == 3 else array
    if array.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise DataError(
            f"{where} is {array.dtype} of shape {array.shape}; "
            "expected uint8 (n, height, width) or (n, height, width, 3), values 0 to 255"
        )
    return images.astype(np.uint8, copy=False)


def _labels(array: npt.NDArray[np.generic], *, count: int, where: str) -> npt.NDArray[np.str_]:
    if array.shape != (count,):
        raise DataError(f"{where} has shape {array.shape}; expected ({count},), one label for each picture")
    if array.dtype.kind not in "iuU":
        raise DataError(f"{where} is {array.dtype}; expected whole numbers or text")
    return array.astype(np.str_)
