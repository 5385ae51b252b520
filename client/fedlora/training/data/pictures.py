"""Pictures as uint8 arrays of one size, with Pillow."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fedlora.training.data.examples import Images

BILINEAR = Image.Resampling.BILINEAR


def eight_bit(picture: Image.Image) -> Image.Image:
    """Return the picture upright, in mode L (grey) or RGB: transparency over white, 16-bit grey by its upper byte.

    Raises:
        ValueError: a floating point or 32-bit picture, whose range is not known.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        coloured = upright.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        return Image.alpha_composite(white, coloured).convert("RGB")
    if upright.mode.startswith("I"):
        return Image.fromarray(_upper_byte(np.asarray(upright)))
    if upright.mode == "F":
        raise ValueError("a floating point picture; expected 8 or 16 bits a channel")
    return upright.convert("L" if upright.mode in ("1", "L") else "RGB")


def _upper_byte(grey: npt.NDArray[np.integer[Any]]) -> Images:
    """Return grey values (height, width) from 0 to 65,535 as uint8; Pillow itself would turn all above 255 white."""
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise ValueError(f"grey values from {grey.min()} to {grey.max()}; expected 0 to 65535")
    return (grey >> 8).astype(np.uint8)


def square(picture: Image.Image, size: int) -> Images:
    """Return the picture as (size, size, channels) uint8, with 1 channel for mode L and 3 for RGB; bilinear."""
    pixels = np.asarray(picture if picture.size == (size, size) else picture.resize((size, size), BILINEAR))
    return pixels.reshape(size, size, -1)


def resized(images: Images, size: int) -> Images:
    """Return pictures (n, height, width, channels) as (n, size, size, channels); as they are if they have that size."""
    count, height, width, channels = images.shape
    if (height, width) == (size, size):
        return images
    result = np.empty((count, size, size, channels), np.uint8)

    def resize(index: int) -> None:
        pixels = images[index, :, :, 0] if channels == 1 else images[index]
        result[index] = square(Image.fromarray(pixels), size)

    with ThreadPoolExecutor() as pool:  # Pillow frees the interpreter lock while it resizes
        for _ in pool.map(resize, range(count)):
            pass
    return result


def same_channels(parts: list[Images]) -> list[Images]:
    """Return arrays (..., channels) with 1 channel each where all have 1; else with 3 each, grey repeated."""
    if len({part.shape[-1] for part in parts}) == 1:
        return parts
    return [part if part.shape[-1] == 3 else np.repeat(part, 3, axis=-1) for part in parts]
