"""A packed adapter: its bytes, or the file that holds them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackedFile:
    """A packed adapter on this machine's disk, where it stays for as long as somebody reads from it.

    Attributes:
        wire_bytes: what it takes on the wire.
        sha256: of the file, where it is known.
    """

    path: Path
    wire_bytes: int
    sha256: str = ""


Packed = bytes | PackedFile


def packed_bytes(packed: Packed) -> bytes:
    """Return a packed adapter's bytes, read from its file where it lies in one."""
    return packed.path.read_bytes() if isinstance(packed, PackedFile) else packed


def wire_bytes(packed: Packed) -> int:
    """Return how many bytes a packed adapter takes on the wire."""
    return packed.wire_bytes if isinstance(packed, PackedFile) else len(packed)
