"""Who signs a member's keys, and how the others know: by a site's certificate, or among the clients of a simulation."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedlora.common.errors import FedloraError


class SumsRefused(FedloraError):  # noqa: N818 (what a client does)
    """A client does not go on with the sums of a round: it would show its update, or knows nobody by their keys."""

    code = "sums_refused"


class Signer(Protocol):
    """What a client signs with, and what it knows the others by."""

    def identity(self) -> bytes:
        """Return what the others get to know this client by."""

    def sign(self, message: bytes) -> bytes:
        """Return this client's signature."""

    def require_known(self, name: str, identity: bytes) -> None:
        """Check that an identity is that of another client.

        Raises:
            SumsRefused: it is not, or not any more what it was.
        """

    def is_signed(self, message: bytes, signature: bytes, *, identity: bytes) -> bool:
        """Return whether a signature is that of the client of an identity."""


class SignerOf(Protocol):
    """Gives the signer of a client; it goes to a worker process, so it is picklable."""

    def __call__(self, client: str) -> Signer: ...


def is_signed_by(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature is that of an Ed25519 key."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class SimulatedSigners:
    """The signers of a simulation, whose clients are one person's: anybody there can make anybody's key."""

    seed: int

    def __call__(self, client: str) -> Signer:
        return _SimulatedSigner(self, client)

    def key_of(self, client: str) -> Ed25519PrivateKey:
        """Return a client's key."""
        secret = hashlib.sha256(f"fedlora simulated signer {self.seed} {client}".encode()).digest()
        return Ed25519PrivateKey.from_private_bytes(secret)

    def identity_of(self, client: str) -> bytes:
        """Return what a client is known by."""
        return self.key_of(client).public_key().public_bytes_raw()


@dataclass(frozen=True)
class _SimulatedSigner:
    signers: SimulatedSigners
    name: str

    def identity(self) -> bytes:
        return self.signers.identity_of(self.name)

    def sign(self, message: bytes) -> bytes:
        return self.signers.key_of(self.name).sign(message)

    def require_known(self, name: str, identity: bytes) -> None:
        if identity != self.signers.identity_of(name):
            raise SumsRefused(f"what {name} is known by is not that client's")

    def is_signed(self, message: bytes, signature: bytes, *, identity: bytes) -> bool:
        return is_signed_by(identity, message, signature)
