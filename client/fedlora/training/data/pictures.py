"""One picture, from a file's bytes, from Pillow or from an array, to uint8 of the run's size."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fedlora.common.errors import one_line
from fedlora.training.data.examples import Images
from fedlora.training.data.pixel_ranges import Ends, Values, scaled

BILINEAR = Image.Resampling.BILINEAR
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

TURNED = "turned upright by the EXIF orientation"
ON_WHITE = "put on white where transparent"
FIRST_FRAME = "of several frames or pages, of which the first is taken"

_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339
_PPM_WHITE = 0xFFFF


@dataclass(frozen=True, eq=False)
class Opened:
    """A picture as it was given, upright.

    Attributes:
        pixels: of 8 bits: Pillow's, in mode L or RGB; deeper: values (height, width, channels) whose range the run
            has to say, of 1 or 3 channels, or of 2 or 4 with opacity.
        done: what was done to it, in words.
    """

    pixels: Image.Image | Values
    done: tuple[str, ...] = ()


def opened_bytes(content: bytes, size: int) -> Opened:
    """Return the picture in a file's content, one that will be `size` pixels square.

    Raises:
        ValueError: it cannot be read, or not whole; the text says why, in one line.
    """
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            # A JPEG can be decoded at a fraction of its size, in a tenth of the time for a photo of 12 megapixels.
            picture.draft(None, (2 * size, 2 * size))
            return opened(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"not a picture ({len(content):,} bytes)") from error
    # A damaged PNG is a SyntaxError to Pillow, a damaged header of others a ValueError.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot be read as a picture ({one_line(error)})") from error


def opened(picture: Image.Image) -> Opened:
    """Return Pillow's picture upright: of 8 bits in mode L (grey) or RGB, transparency over white; deeper as values.

    Raises:
        ValueError: more than 8 bits in colour, which Pillow would cut to the upper 8; or damaged.
    """
    is_deep = picture.mode == "F" or picture.mode.startswith("I")
    # Before anything that loads the picture, after which Pillow no longer knows how its file has it.
    _refuse_cut_bits(picture, is_deep=is_deep)
    restore = _restoring(picture)
    done = []
    if getattr(picture, "is_animated", False):
        done.append(FIRST_FRAME)
    if picture.getexif().get(_ORIENTATION, 1) in range(2, 9):
        done.append(TURNED)
    upright = ImageOps.exif_transpose(picture)
    if is_deep:
        if upright.has_transparency_data:
            raise ValueError("a transparent colour in a picture of more than 8 bits; save it without one")
        return Opened(restore(np.asarray(upright))[:, :, np.newaxis], tuple(done))
    if upright.has_transparency_data:
        flat, is_clear = _on_white(upright)
        return Opened(flat, (*done, ON_WHITE) if is_clear else tuple(done))
    if upright.mode not in ("1", "L", "P", "RGB"):
        done.append(f"{upright.mode} turned into RGB")
    return Opened(upright.convert("L" if upright.mode in ("1", "L") else "RGB"), tuple(done))


def opened_array(given: npt.NDArray[Any], *, is_channels_first: bool = False) -> Opened:
    """Return a picture in an array.

    Args:
        given: uint8, bool, or any other numbers; (height, width), (height, width, channels) or (channels, height,
            width), with 1 or 3 channels, or 2 or 4 with opacity.
        is_channels_first: how a shape is meant that could be both.

    Raises:
        ValueError: another type or shape.
    """
    if given.dtype.kind not in "biuf":
        raise ValueError(f"{given.dtype} of shape {given.shape}; expected numbers, such as uint8")
    values = channels_last(given, is_channels_first=is_channels_first)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    if values.dtype != np.uint8:
        return Opened(values)
    picture = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))
    return opened(picture)


def channels_last(given: npt.NDArray[Any], *, is_channels_first: bool = False) -> npt.NDArray[Any]:
    """Return a picture's array as (height, width, channels).

    Raises:
        ValueError: another shape.
    """
    axis = channel_axis(given.shape, is_channels_first=is_channels_first)
    return given[:, :, np.newaxis] if axis is None else np.moveaxis(given, axis, -1)


def channel_axis(shape: tuple[int, ...], *, is_channels_first: bool = False) -> int | None:
    """Return which axis of a picture has its 1 to 4 channels; None without one.

    Args:
        is_channels_first: how a shape is meant that could be both.

    Raises:
        ValueError: it is not the shape of a picture.
    """
    if 0 not in shape:
        if len(shape) == 2:
            return None
        axes = [axis for axis in (2, 0) if len(shape) == 3 and 1 <= shape[axis] <= 4]
        if axes:
            return min(axes) if is_channels_first else max(axes)
    raise ValueError(
        f"of shape {shape}; expected (height, width), (height, width, channels) or (channels, height, width), "
        "with 1 to 4 channels"
    )


def finished(pixels: Image.Image | Values, size: int, ends: Ends) -> Images:
    """Return a picture as (size, size, channels) uint8, with 1 or 3 channels; values go from black to white at `ends`.

    Values are resized before they are rounded to 8 bits.
    """
    if isinstance(pixels, Image.Image):
        return square(pixels, size)
    values = scaled(pixels, ends)
    if values.shape[2] in (2, 4):
        flat, _ = _on_white(Image.fromarray(_rounded(values)))
        return square(flat, size)
    bands = [square(Image.fromarray(values[:, :, band]), size) for band in range(values.shape[2])]
    return _rounded(np.concatenate(bands, axis=-1))


def square(picture: Image.Image, size: int) -> npt.NDArray[Any]:
    """Return the picture as (size, size, channels), with 1 channel for mode L or F and 3 for RGB; bilinear."""
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


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """Return a picture with opacity over white, in RGB, and whether any of it was clear."""
    # Pillow knows the way from grey with premultiplied opacity through LA alone.
    coloured = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    opacity: Any = coloured.getchannel("A").getextrema()
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB"), opacity[0] < 255


def _rounded(values: npt.NDArray[np.float32]) -> Images:
    return np.rint(values).astype(np.uint8)


def _refuse_cut_bits(picture: Image.Image, *, is_deep: bool) -> None:
    """Raise ValueError for a file that is not loaded yet and of which Pillow would give less than it holds."""
    tags = getattr(picture, "tag_v2", {})
    bits = max(tags.get(_BITS) or (8,))
    for tile in getattr(picture, "tile", ()):
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if ";16" in str(args[0]):
            bits = max(bits, 16)
        elif tile.codec_name.startswith("ppm") and len(args) > 1:
            bits = max(bits, int(args[1]).bit_length())
    if is_deep and tags.get(_PHOTOMETRIC) == 0:
        raise ValueError(f"{bits} bits with white at 0 (PhotometricInterpretation 0); save it with black at 0")
    if not is_deep and bits > 8:
        raise ValueError(
            f"{bits} bits a channel in {picture.mode}, of which only the upper 8 can be read from this format; save it "
            "as grey, with 8 bits a channel, or as an array of its numbers in an .npz"
        )


def _restoring(picture: Image.Image) -> Any:
    """Return what brings values that Pillow gives back to those that the file holds."""
    tags = getattr(picture, "tag_v2", {})
    if picture.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        return lambda values: values.view(np.uint32)
    tile = next(iter(getattr(picture, "tile", ())), None)
    if picture.mode == "I" and tile is not None and tile.codec_name.startswith("ppm"):
        # Pillow stretches what a PGM declares as white to 16 bits.
        white = tile.args[1]
        return lambda values: np.rint(values * (white / _PPM_WHITE)).astype(np.int32)
    return lambda values: values
