"""A packed adapter: its bytes, or the file that holds them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PackedFile:
    """A packed adapter on this machine's disk, where it stays for as long as somebody reads from it.

    `wire_bytes` is what it took on the wire.
    """

    path: Path
    wire_bytes: int


Packed = bytes | PackedFile


def wire_bytes(packed: Packed) -> int:
    """Return how many bytes a packed adapter takes on the wire."""
    return packed.wire_bytes if isinstance(packed, PackedFile) else len(packed)
