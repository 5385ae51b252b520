"""Pictures in a column of a table, with their labels: bytes of files, Hugging Face's Image feature, or paths."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedlora.common.config import DataSection
from fedlora.common.errors import DataError
from fedlora.training.data.columns import with_columns
from fedlora.training.data.examples import Images
from fedlora.training.data.given_pictures import opened_input
from fedlora.training.data.picture_reading import Wanted, notes_on, read_pictures
from fedlora.training.data.pictures import Opened, same_channels
from fedlora.training.data.source import Source, enumeration
from fedlora.training.data.tables import Table


def labelled_pictures(
    table: Table, data: DataSection, *, origin: str, beside: Path, image_size: int, wanted: Wanted
) -> Source:
    """Return the pictures of a table with their labels, `image_size` pixels square.

    Args:
        origin: names the table.
        beside: the folder that relative paths in the column start from.
        wanted: black and white of pictures that are deeper than 8 bits.

    Raises:
        DataError: there is no column data.image or data.label, or a picture or label that cannot be used.
    """
    rows = table.rows
    if data.image not in rows[0].row:
        raise DataError(
            f'{origin}: a table of texts; set task.kind = "sequence_classification", or name an image folder or an '
            f".npz file, or by data.image the column with pictures (none is {data.image!r}; the columns are "
            f"{enumeration(rows[0].row)})"
        )
    pictures: list[Images] = [np.empty(0, np.uint8)] * len(rows)

    def open_picture(index: int) -> Opened:
        value, where = rows[index].row.get(data.image), f"{rows[index].where}: {data.image!r}"
        try:
            return opened_input(value, image_size, beside=beside)
        except TypeError as error:
            kind = "empty" if value is None or value == {"bytes": None, "path": None} else f"a {type(value).__name__}"
            raise DataError(
                f"{where} is {kind}; expected a picture: a file's bytes, {{bytes, path}}, or a path"
            ) from error
        except OSError as error:
            raise DataError(f"{where}: {error.filename} cannot be read ({error.strerror})") from error
        except (SyntaxError, ValueError) as error:
            raise DataError(f"{where}: {error}; replace or remove it") from error

    reading = read_pictures(
        [f"{row.where}: {data.image!r}" for row in rows],
        open_picture,
        pictures.__setitem__,
        image_size=image_size,
        wanted=wanted,
    )
    inputs = np.stack(same_channels(pictures))
    source = with_columns(inputs, table, data, label_key="data.label")
    # Of pictures in files the table has the names alone.
    fingerprint = hashlib.sha256(source.fingerprint.encode() + inputs.tobytes()).hexdigest()
    notes = tuple(notes_on(reading, origin=origin))
    return replace(source, fingerprint=fingerprint, notes=notes, pixel_range=reading.ends)
