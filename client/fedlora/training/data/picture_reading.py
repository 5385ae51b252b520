"""All pictures of one origin: read in parallel, and those deeper than 8 bits brought to one range."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fedlora.common.errors import DataError
from fedlora.training.data.examples import Images, Note
from fedlora.training.data.pictures import FIRST_FRAME, Opened, finished
from fedlora.training.data.pixel_ranges import (
    Ends,
    Spread,
    fitting_range,
    is_mostly_unused,
    joined,
    num_outside,
    range_text,
    spread_of,
)

# None: the range of deep pictures must be given, as at a site, which cannot know what the other sites hold.
Wanted = Ends | Literal["auto"] | None

_EIGHT_BIT: Ends = (0.0, 255.0)


@dataclass(frozen=True)
class PictureReading:
    """What was found in pictures, and done to them.

    Attributes:
        ends: black and white of those deeper than 8 bits; None where there are none.
        unneeded: the range that the run gives for such pictures where there are none.
        is_guessed: whether `ends` were found from the pictures themselves.
        num_deep: how many are deeper than 8 bits, with values in `spread`.
        num_clipped, num_values_clipped: pictures with values outside of `ends`, and such values.
        done: how often something was done to a picture, by the words for it.
    """

    num_pictures: int
    ends: Ends | None = None
    unneeded: Ends | None = None
    is_guessed: bool = False
    num_deep: int = 0
    spread: Spread | None = None
    num_clipped: int = 0
    num_values_clipped: int = 0
    done: Counter[str] = field(default_factory=Counter)


def read_pictures(
    wheres: Sequence[str],
    open_picture: Callable[[int], Opened],
    put: Callable[[int, Images], None],
    *,
    image_size: int,
    wanted: Wanted,
) -> PictureReading:
    """Put each picture where it belongs, as (image_size, image_size, 1 or 3) uint8, and return what was found.

    Args:
        wheres: a name for each picture, for errors.
        open_picture: returns a picture by its number; asked twice for a deep one if the range is to be found.
        put: takes a finished picture with its number.
        wanted: black and white of deep pictures.

    Raises:
        DataError: deep pictures whose range must be given, or has values that are no numbers; or by `open_picture`.
    """
    given = wanted if isinstance(wanted, tuple) else None

    def first(index: int) -> tuple[tuple[str, ...], Spread | None, int]:
        found = open_picture(index)
        if not isinstance(found.pixels, np.ndarray):
            put(index, finished(found.pixels, image_size, _EIGHT_BIT))
            return found.done, None, 0
        try:
            spread = spread_of(found.pixels)
        except ValueError as error:
            raise DataError(f"{wheres[index]}: {error}") from error
        if given is not None:
            put(index, finished(found.pixels, image_size, given))
        return found.done, spread, 0 if given is None else num_outside(found.pixels, given)

    def second(index: int) -> None:
        put(index, finished(open_picture(index).pixels, image_size, ends))

    with ThreadPoolExecutor() as pool:  # Pillow frees the interpreter lock while it decodes
        seen = list(pool.map(first, range(len(wheres))))
        done = Counter(words for all_done, _, _ in seen for words in all_done)
        deep = {index: spread for index, (_, spread, _) in enumerate(seen) if spread is not None}
        if not deep:
            return PictureReading(len(wheres), unneeded=given, done=done)
        spread = joined(deep.values())
        ends = given or fitting_range(spread)
        if wanted is None:
            _refuse_unknown_range(wheres[next(iter(deep))], spread, len(deep), len(wheres))
        if given is None:
            list(pool.map(second, deep))
    outside = [count for _, _, count in seen if count]
    return PictureReading(
        len(wheres),
        ends,
        is_guessed=given is None,
        num_deep=len(deep),
        spread=spread,
        num_clipped=len(outside),
        num_values_clipped=sum(outside),
        done=done,
    )


def notes_on(reading: PictureReading, *, origin: str) -> list[Note]:
    """Return what a user should know of pictures that were read, in sentences."""
    notes = [
        Note(f"{origin}: {count:,} of {reading.num_pictures:,} pictures {words}", is_warning=words == FIRST_FRAME)
        for words, count in sorted(reading.done.items())
    ]
    if reading.unneeded is not None:
        unneeded = f"task.pixel_range = {range_text(reading.unneeded)} changes nothing"
        notes.append(Note(f"{origin}: no picture is deeper than 8 bits, so that {unneeded}", is_warning=True))
    if reading.ends is None or reading.spread is None:
        return notes
    spread, ends = reading.spread, range_text(reading.ends)
    found = f"values from {spread.low:,.10g} to {spread.high:,.10g}"
    how = "found from them and the same for all clients" if reading.is_guessed else "as the run says"
    if reading.is_guessed and spread.low < 0 and not spread.is_whole:
        how += "; pictures that were normalised already should be given as they were before"
    notes.append(
        Note(
            f"{origin}: {reading.num_deep:,} of {reading.num_pictures:,} pictures are deeper than 8 bits, with {found};"
            f" black and white are task.pixel_range = {ends}, {how}",
            is_warning=reading.is_guessed,
        )
    )
    if reading.num_values_clipped:
        notes.append(
            Note(
                f"{origin}: {reading.num_values_clipped:,} values in {reading.num_clipped:,} pictures are outside of "
                f"task.pixel_range = {ends} and became black or white; the pictures have {found}",
                is_warning=True,
            )
        )
    if is_mostly_unused(spread, reading.ends):
        bulk = range_text((spread.bulk_low, max(spread.bulk_high, spread.bulk_low + 1)))
        notes.append(
            Note(
                f"{origin}: most of task.pixel_range = {ends} is unused: nearly all values are in {bulk}, so that few "
                f"grey values are left to tell them apart; task.pixel_range = {bulk} would spread them out",
                is_warning=True,
            )
        )
    return notes


def _refuse_unknown_range(where: str, spread: Spread, num_deep: int, num_pictures: int) -> None:
    raise DataError(
        f"{where}: deeper than 8 bits, as are {num_deep:,} of {num_pictures:,} pictures, with values from "
        f"{spread.low:,.10g} to {spread.high:,.10g}; which of them is black and which white must be the same at all "
        f"sites: the run file needs, under [task], pixel_range = {range_text(fitting_range(spread))}, or what else "
        "holds for all of them"
    )
