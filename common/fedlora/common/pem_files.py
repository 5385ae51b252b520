"""Where the certificates of an authority of one's own lie."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PemFiles:
    """Three files: the authority's certificate, a certificate from it, and the key of that."""

    ca: Path
    certificate: Path
    key: Path
