"""`--ca`, `--cert` and `--key`, wherever they are typed."""

from pathlib import Path

from fedlora.common.errors import ConfigError
from fedlora.common.pem_files import PemFiles


def pem_files(ca: Path | None, certificate: Path | None, key: Path | None) -> PemFiles | None:
    """Return the files that were typed; None where none was.

    Raises:
        ConfigError: one is missing.
    """
    if ca is not None and certificate is not None and key is not None:
        return PemFiles(ca, certificate, key)
    if ca or certificate or key:
        raise ConfigError("--ca, --cert and --key go together; give all three, or none of them")
    return None
