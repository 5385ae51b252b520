"""The text in a file, plain or compressed with gzip, in UTF-8 or with a byte order mark that says otherwise."""

import codecs
import gzip
import zlib
from pathlib import Path

from fedlora.common.errors import DataError

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def text_of(path: Path) -> str:
    """Return a file's text, without its byte order mark.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        raw = path.read_bytes()
        if path.suffix.lower() == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8-sig")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].decode(encoding, "ignore").count("\n") + 1
        found, expected = raw[error.start], encoding.removesuffix("-sig").upper()
        raise DataError(f"{path}, line {line}: byte 0x{found:02x} is not {expected}; save the file as UTF-8") from error
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(f"{path}, line {line}: a NUL character, which no text has; save the file as UTF-8")
    return text
