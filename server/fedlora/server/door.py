"""How a server listens and whom it lets in: its address, its certificates, and the authority that signs the sites'."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

from fedlora.common import open_files
from fedlora.common.addresses import require_loopback
from fedlora.common.errors import ConfigError
from fedlora.common.run_folder import IDENTITY_FOLDER
from fedlora.server.identity.authority import Authority
from fedlora.server.sites.grpc.port import ExternalPair, ServerCertificates


@dataclass(frozen=True)
class Door:
    """How a server listens, and whom it lets in.

    Attributes:
        address: HOST:PORT.
        is_insecure: plain text without certificates, on loopback alone.
        identity: the folder of the authority and the sites' records; None for the run folder's own.
        external_ca, external_pair: the files of an authority of one's own, and the server's pair from it.
    """

    address: str
    is_insecure: bool = False
    identity: Path | None = None
    external_ca: Path | None = None
    external_pair: ExternalPair | None = None

    def identity_folder(self, run_folder: Path) -> Path:
        """Return the folder of the authority and the sites' records."""
        return self.identity or run_folder / IDENTITY_FOLDER


def credentials_of(door: Door, authority: Authority | None) -> grpc.ServerCredentials | None:
    """Return what a port shows and asks for; without an authority nothing, on loopback alone.

    Raises:
        FedloraError: the address is another machine's, or key and certificate cannot be read.
    """
    if authority is None:
        require_loopback(door.address)
        return None
    return ServerCertificates(authority, door.external_pair).credentials()


def authority_of(door: Door, folder: Path) -> Authority | None:
    """Return who signs the sites' certificates, None where there are none; `folder` is the run's, or the store's.

    Raises:
        FedloraError: its files cannot be used.
    """
    if door.is_insecure:
        return None
    identity = door.identity_folder(folder)
    if door.external_ca is None:
        return Authority.open(identity, datetime.now(UTC))
    try:
        return Authority.external(identity, door.external_ca.read_bytes())
    except OSError as error:
        open_files.require_descriptors(error)
        raise ConfigError(f"{door.external_ca}: cannot be read ({error.strerror}); expected a file in PEM") from error
