"""What members of a sum tell each other of their keys, signed, and what two of them agree on (X25519, RFC 7748).

Each sum of a round has masks of its own: the key of one that a member leaves is made known, and must not open what
that member sent for the sum before.
"""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedlora.secure_sums.masks import SEED_BYTES


def least_threshold(num_members: int) -> int:
    """Return how many of so many members must be there to the end at least: two in three, and two."""
    return max(2, -(-2 * num_members // 3))


@dataclass(frozen=True)
class SumPlan:
    """What the members of a round's sums have in common.

    Attributes:
        run: the run's id.
        round, attempt: of the run.
        members: names in order; each of them is asked to take part.
        threshold: how many of them must be there to the end: two in three at least. So no server has two lists of who
            is there confirmed, unless 2 threshold - members of them would sign both, which is a third of them.
        num_sums: of the round, one after another.
        terms: a digest of what else they must agree on, such as how numbers are written.
    """

    run: str
    round: int
    attempt: int
    members: tuple[str, ...]
    threshold: int
    num_sums: int
    terms: bytes = b""

    def __post_init__(self) -> None:
        """Check what is given.

        Raises:
            ValueError: the members are not in order, or fewer than two must be there, or than two in three of them.
        """
        if list(self.members) != sorted(set(self.members)):
            raise ValueError("expected the members' names in order, each once")
        if not least_threshold(len(self.members)) <= self.threshold <= len(self.members):
            raise ValueError(
                f"a threshold of {self.threshold} of {len(self.members)} members; expected two in three of them, and "
                "two at least"
            )

    @cached_property
    def context(self) -> bytes:
        """What all keys and signatures are bound to."""
        numbers = map(_eight_bytes, (self.round, self.attempt, self.threshold, self.num_sums))
        return digest(b"plan", self.run.encode(), self.terms, *numbers, *(name.encode() for name in self.members))


@dataclass(frozen=True)
class PublicKeys:
    """What a member makes known of its keys.

    Attributes:
        sealing: the key under which others send it shares.
        masking: for each sum, the key that masks with others come from.
        own_seeds: for each sum, the digest of the seed of the mask that is the member's own.
        signature: of all of it, by the key of the member's certificate.
    """

    member: str
    sealing: bytes
    masking: tuple[bytes, ...]
    own_seeds: tuple[bytes, ...]
    signature: bytes = b""

    def signed_bytes(self, plan: SumPlan) -> bytes:
        """Return what the signature is of."""
        return digest(b"keys", plan.context, self.member.encode(), self.sealing, *self.masking, *self.own_seeds)


@dataclass(frozen=True)
class RoundKeys:
    """A member's secrets of a round; 32 bytes each.

    Attributes:
        sealing: what shares that others send are opened with.
        masking: for each sum, what its masks with others come from.
        own_seeds: for each sum, the seed of the mask that is its own.
    """

    sealing: bytes = field(repr=False)
    masking: tuple[bytes, ...] = field(repr=False)
    own_seeds: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def made(cls, num_sums: int) -> "RoundKeys":
        """Return new ones."""
        masking = tuple(X25519PrivateKey.generate().private_bytes_raw() for _ in range(num_sums))
        seeds = tuple(secrets.token_bytes(SEED_BYTES) for _ in range(num_sums))
        return cls(X25519PrivateKey.generate().private_bytes_raw(), masking, seeds)

    def public(self, member: str) -> PublicKeys:
        """Return what is made known of them, not yet signed."""
        masking = tuple(map(public_of, self.masking))
        return PublicKeys(member, public_of(self.sealing), masking, tuple(map(seed_digest, self.own_seeds)))


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def seed_digest(seed: bytes) -> bytes:
    """Return what tells a seed from others and does not tell what it is."""
    return digest(b"seed", seed)


def agreed(private: bytes, public: bytes, *purpose: bytes) -> bytes:
    """Return 32 bytes that the holders of both keys have alone, others for each purpose (HKDF, RFC 5869).

    Raises:
        ValueError: the public key is none, or one with which everybody agrees on the same.
    """
    common = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=digest(b"agreed", *purpose)).derive(common)


def digest(*parts: bytes) -> bytes:
    """Return the SHA-256 of parts, which no other parts have that are cut elsewhere."""
    found = hashlib.sha256(b"fedlora secure sums 1")
    for part in parts:
        found.update(_eight_bytes(len(part)))
        found.update(part)
    return found.digest()


def names_digest(names: Sequence[str]) -> bytes:
    """Return the digest of names, whatever their order."""
    return digest(b"names", *(name.encode() for name in sorted(names)))


def _eight_bytes(number: int) -> bytes:
    return number.to_bytes(8, "big")
